#!/usr/bin/env python3
"""An ooze-task/1 service around reasoning-gym (pip install reasoning-gym): one dataset of it as a single-turn task.

    reasoning_gym_task.py --dataset chain_sum --config '{"min_terms":2,"max_terms":2}' --port 0 --port-file F

Training and held-out prompts are items of the same dataset under two different seeds; a held-out question that also occurs among the
training items (small configurations do repeat) is replaced by the next one that does not.
"""
import argparse
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import reasoning_gym


class Dataset:
    def __init__(self, name, config, train, held_out, seed):
        self.name = name
        self.train = reasoning_gym.create_dataset(name, size=train, seed=seed, **config)
        seen = {self.train[i]["question"] for i in range(train)}
        pool = reasoning_gym.create_dataset(name, size=held_out * 50, seed=seed + 1, **config)
        self.eval = []
        for item in pool:
            if item["question"] not in seen:
                seen.add(item["question"])
                self.eval.append(item)
                if len(self.eval) == held_out:
                    break
        if not self.eval:
            raise SystemExit(f"{name}: every question of the held-out seed is a training question; widen --config")

    def item(self, split, index):
        return self.eval[index] if split == "eval" else self.train[index]

    def grade(self, text, item):
        """Exact answer 1; reasoning-gym's own partial credit is halved so that only a right answer reaches the top."""
        score = float(self.train.score_answer(answer=text, entry=item))
        return 1.0 if score >= 1.0 else 0.5 * max(0.0, score)


def last_answer(text):
    """The text after the last 'Answer:' when there is one, else the last line that is not empty."""
    at = text.rfind("Answer:")
    if at >= 0:
        text = text[at + len("Answer:"):]
        return text.strip().splitlines()[0].strip() if text.strip() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


class Task(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dataset = None
    lock = threading.Lock()  # reasoning-gym's generators are not promised to be thread-safe
    suffix = ""

    def reply(self, status, body=None):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/task":
            d = self.dataset
            self.reply(200, {"protocol": "ooze-task/1", "name": d.name, "mode": "env", "description": f"reasoning-gym {d.name}",
                             "splits": {"train": len(d.train), "eval": len(d.eval)}, "max_turns": 1, "tools": [],
                             "reward": {"min": 0, "max": 1}})
        elif self.path == "/health":
            self.reply(200, {"status": "healthy"})
        else:
            self.reply(404, {"error": {"kind": "environment", "message": f"no {self.path}"}})

    def do_POST(self):
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            with self.lock:
                if self.path == "/episodes":
                    item = self.dataset.item(body["split"], body["index"])
                    reply = {"episode_id": f"{body['split']}-{body['index']}", "label": item["answer"],
                             "messages": [{"role": "user", "content": item["question"] + self.suffix}]}
                else:
                    split, index = self.path.split("/")[2].split("-")
                    item = self.dataset.item(split, int(index))
                    text = body["message"].get("content") or ""
                    reply = {"messages": [], "done": True, "reward": self.dataset.grade(last_answer(text), item)}
            self.reply(200, reply)
        except (KeyError, IndexError, ValueError) as e:
            self.reply(400, {"error": {"kind": "environment", "message": f"{type(e).__name__}: {e}"}})

    def do_DELETE(self):
        self.reply(204)

    def log_message(self, *_):
        pass


def main():
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("--dataset", required=True)
    o.add_argument("--config", default="{}", help="JSON object of the dataset's parameters")
    o.add_argument("--train", type=int, default=20000)
    o.add_argument("--held-out", type=int, default=256)
    o.add_argument("--seed", type=int, default=1)
    o.add_argument("--suffix", default="", help="text after every question")
    o.add_argument("--host", default="127.0.0.1")
    o.add_argument("--port", type=int, default=0)
    o.add_argument("--port-file")
    a = o.parse_args()
    Task.dataset = Dataset(a.dataset, json.loads(a.config), a.train, a.held_out, a.seed)
    Task.suffix = a.suffix
    server = ThreadingHTTPServer((a.host, a.port), Task)
    if a.port_file:
        with open(a.port_file + ".tmp", "w") as f:
            f.write(f"{server.server_port}\n")
        os.rename(a.port_file + ".tmp", a.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
