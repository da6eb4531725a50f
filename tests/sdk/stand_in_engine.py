#!/usr/bin/env python3
"""A stand-in for the program of the second engine, with every fault that such a process can have.

It speaks the program's protocol on the socket that is its standard input (`attune_engine::child::protocol`) and repeats the
prompt's tokens. The name of the model, its first argument, says what is wrong with it:

    slow      takes two seconds to load, and says how it grows
    old       speaks an older version of the protocol
    unfit     cannot load the model
    crashing  ends after three tokens of any answer
    garbage   says what is no frame, after three tokens of any answer
    silent    never draws a token
    small     has room for 24 tokens
"""

import json
import os
import socket
import struct
import sys
import time

VERSION = 2


class Engine:
    def __init__(self, kind, connection):
        self.kind, self.connection, self.version = kind, connection, VERSION - 1 if kind == "old" else VERSION
        self.answers = {}

    def say(self, what, **fields):
        frame = json.dumps({"say": what, **fields}).encode()
        self.connection.sendall(struct.pack("<I", len(frame)) + frame)

    def hear(self):
        """The next frame; `None` if the other end has gone."""
        head = self.read(4)
        return head and json.loads(self.read(struct.unpack("<I", head)[0]))

    def read(self, size):
        data = b""
        while len(data) < size:
            piece = self.connection.recv(size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def load(self):
        if self.kind == "slow":
            for part in range(4):
                self.say("loading", resident_bytes=part << 20)
                time.sleep(0.5)
        if self.kind == "unfit":
            self.say("unfit", message="the weights are for another planet")
            sys.exit(1)
        self.say("ready", version=self.version, context=24 if self.kind == "small" else 1 << 20, resident_bytes=1 << 20)

    def begin(self, asked):
        number, prompt = asked["request"], asked["prompt"]
        if asked["prompt_logprobs"] is not None:
            scores = [{"id": token, "logprob": -1.5, "top": []} for token in prompt[1:]]
            # In two frames, as for a long prompt.
            for part in (scores[: len(scores) // 2], scores[len(scores) // 2 :]):
                self.say("prompt", request=number, tokens=part)
        if asked["max_tokens"] == 0:
            return self.say("ended", request=number, at_length=True)
        self.answers[number] = {**asked, "drawn": 0}
        self.draw(number, asked["allowed"])

    def draw(self, number, allowed):
        """Draws tokens up to the end, or one of those that a grammar allows."""
        while answer := self.answers.get(number):
            if self.kind == "silent":
                return
            token = answer["prompt"][answer["drawn"] % len(answer["prompt"])]
            if allowed is not None:
                token = next(bit for bit in range(len(allowed) * 32) if allowed[bit // 32] >> bit % 32 & 1)
            answer["drawn"] += 1
            logprob = None if answer["logprobs"] is None else -0.5
            self.say("token", request=number, token=token, logprob=logprob, top=[])
            if answer["drawn"] == 3 and self.kind == "crashing":
                os._exit(7)
            if answer["drawn"] == 3 and self.kind == "garbage":
                self.connection.sendall(b"\x05\0\0\0{what")
            if answer["drawn"] >= answer["max_tokens"] or token in answer["ends"]:
                del self.answers[number]
                self.say("ended", request=number, at_length=token not in answer["ends"])
            elif allowed is not None:
                return

    def run(self):
        assert self.hear()["say"] == "load"
        self.load()
        while frame := self.hear():
            if frame["say"] == "generate":
                self.begin(frame)
            elif frame["say"] == "allow":
                self.draw(frame["request"], frame["tokens"])
            elif frame["say"] == "cancel":
                self.answers.pop(frame["request"], None)


if __name__ == "__main__":
    Engine(sys.argv[1], socket.socket(fileno=os.dup(0))).run()
