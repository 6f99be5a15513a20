#!/usr/bin/env python3
"""The smallest ooze-task/1 service (docs/protocols.md): copy it, change `prompt` and `grade`. Python's standard library only.

    python3 task.py --port 0 --port-file port.txt
"""
import argparse
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TRAIN, EVAL = 100_000, 1_000  # prompts of each split; null in GET /task would mean unbounded


def prompt(split, index):
    """The same (split, index) gives the same prompt. Held-out prompts must not be training prompts."""
    n = index + (TRAIN if split == "eval" else 0)
    return f"What is {n // 317} + {n % 317}? Answer with the number only.", str(n // 317 + n % 317)


def grade(answer, text):
    """Reward between 0 and 1."""
    return 1.0 if text.strip() == answer else 0.0


class Task(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, body=None):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/task":
            self.reply(200, {"protocol": "ooze-task/1", "name": "template", "mode": "env", "description": "Adds two numbers.",
                             "splits": {"train": TRAIN, "eval": EVAL}, "max_turns": 1, "tools": [], "reward": {"min": 0, "max": 1}})
        elif self.path == "/health":
            self.reply(200, {"status": "healthy"})
        else:
            self.reply(404, {"error": {"kind": "environment", "message": f"no {self.path}"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path == "/episodes":  # the id carries the whole state, so a restart of this service loses nothing
            text, _ = prompt(body["split"], body["index"])
            self.reply(200, {"episode_id": f"{body['split']}-{body['index']}", "messages": [{"role": "user", "content": text}]})
        else:  # /episodes/{id}/step
            split, index = self.path.split("/")[2].split("-")
            _, answer = prompt(split, int(index))
            self.reply(200, {"messages": [], "done": True, "reward": grade(answer, body["message"].get("content") or "")})

    def do_DELETE(self):
        self.reply(204)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--port-file")
    args = options.parse_args()
    server = ThreadingHTTPServer((args.host, args.port), Task)
    if args.port_file:  # written whole: whoever waits for it never reads half a number
        with open(args.port_file + ".tmp", "w") as f:
            f.write(f"{server.server_port}\n")
        os.rename(args.port_file + ".tmp", args.port_file)
    server.serve_forever()
