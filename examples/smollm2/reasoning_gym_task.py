#!/usr/bin/env python3
"""An ooze-task/1 service around reasoning-gym (pip install reasoning-gym): one of its datasets as a single-turn task.

    reasoning_gym_task.py --dataset chain_sum --config '{"min_terms":2,"max_terms":3}' --extract number --port 0 --port-file F

A question belongs to the held-out split when a hash of its text says so (one in five), whatever seed it came from: small datasets
repeat questions, and none may be in both splits. A conversation is the optional system message, --shots solved examples (questions of
neither split) and the question. A right answer earns 1, others --partial times reasoning-gym's own score.
"""
import argparse
import hashlib
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import reasoning_gym


def held_out(question):
    return hashlib.sha256(question.encode()).digest()[0] % 5 == 0


def pick(dataset, n, wanted):
    """The first n items of a dataset that `wanted` accepts; fewer when it has no more."""
    out = []
    for item in dataset:
        if len(out) == n:
            break
        if wanted(item["question"]):
            out.append(item)
    return out


class Dataset:
    """The two splits and the solved examples of one dataset; item and grade are called under the lock of the service."""

    def __init__(self, name, config, train, n_held_out, seed, shots):
        self.name, self.seen = name, set()
        self.shots = pick(reasoning_gym.create_dataset(name, size=100, seed=seed + 2, **config), shots, self.unseen)
        self.source = reasoning_gym.create_dataset(name, size=train * 2 + 100, seed=seed, **config)
        shown = set(self.seen)
        self.train = pick(self.source, train, lambda q: not held_out(q) and q not in shown)
        self.eval = pick(reasoning_gym.create_dataset(name, size=n_held_out * 50, seed=seed + 1, **config), n_held_out,
                         lambda q: held_out(q) and self.unseen(q))
        if len(self.train) < train or not self.eval:
            raise SystemExit(f"{name}: {len(self.train)} training and {len(self.eval)} held-out questions; widen --config")

    def unseen(self, question):
        new = question not in self.seen
        self.seen.add(question)
        return new

    def item(self, split, index):
        return {"train": self.train, "eval": self.eval}[split][index]

    def grade(self, answer, item, partial):
        score = float(self.source.score_answer(answer=answer, entry=item))
        return 1.0 if score >= 1 else partial * max(0.0, score)


def answer_of(text, how):
    """What is graded of a reply: its last number, its last word, or its last line that is not empty."""
    if how == "line":
        found = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        found = re.findall(r"-?\d+" if how == "number" else r"[^\W\d_]+", text)
    return found[-1] if found else ""


class Task(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    dataset, options = None, None
    lock = threading.Lock()  # reasoning-gym is not promised to be thread-safe

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

    def messages(self, item):
        o, out = self.options, []
        if o.system:
            out.append({"role": "system", "content": o.system})
        for shot in self.dataset.shots:
            out.append({"role": "user", "content": shot["question"] + o.suffix})
            out.append({"role": "assistant", "content": shot["answer"]})
        return out + [{"role": "user", "content": item["question"] + o.suffix}]

    def do_POST(self):
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            with self.lock:
                if self.path == "/episodes":
                    split, index = body["split"], body["index"]
                    item = self.dataset.item(split, index)
                    # the id says everything: the service keeps no state, so any call can be repeated or come after a restart
                    reply = {"episode_id": f"{split}-{index}", "label": item["answer"], "messages": self.messages(item)}
                else:
                    _, kind, name, verb = self.path.split("/")
                    if (kind, verb) != ("episodes", "step"):
                        raise ValueError(f"no {self.path}")
                    split, index = name.split("-")
                    text = body["message"].get("content") or ""
                    reward = self.dataset.grade(answer_of(text, self.options.extract), self.dataset.item(split, int(index)),
                                                self.options.partial)
                    reply = {"messages": [], "done": True, "reward": reward}
            self.reply(200, reply)
        except (KeyError, IndexError, TypeError, ValueError) as e:
            self.reply(400, {"error": {"kind": "environment", "message": f"{type(e).__name__}: {e}"}})

    def do_DELETE(self):
        self.reply(204)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a caller that has gone is none of our errors
            super().handle_error(request, client_address)


def main():
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("--dataset", required=True)
    o.add_argument("--config", type=json.loads, default={}, help="JSON object of the dataset's parameters")
    o.add_argument("--train", type=int, default=5000, help="training questions (repeats included)")
    o.add_argument("--held-out", type=int, default=128, help="held-out questions at most (all different)")
    o.add_argument("--seed", type=int, default=1)
    o.add_argument("--system", default="", help="system message")
    o.add_argument("--suffix", default="", help="text after every question")
    o.add_argument("--shots", type=int, default=0, help="solved examples before the question")
    o.add_argument("--extract", choices=["line", "number", "word"], default="line", help="what of the reply is graded")
    o.add_argument("--partial", type=float, default=0, help="weight of reasoning-gym's credit for answers that are not right")
    o.add_argument("--host", default="127.0.0.1")
    o.add_argument("--port", type=int, default=0)
    o.add_argument("--port-file")
    a = o.parse_args()
    Task.dataset, Task.options = Dataset(a.dataset, a.config, a.train, a.held_out, a.seed, a.shots), a
    server = Server((a.host, a.port), Task)
    if a.port_file:
        with open(a.port_file + ".tmp", "w", encoding="utf-8") as f:
            f.write(f"{server.server_port}\n")
        os.rename(a.port_file + ".tmp", a.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
