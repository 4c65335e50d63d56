#!/usr/bin/env python3
"""Shows how a client behaves on a bad network: a TCP proxy that drips, cuts and stalls.

  tests/remote/proxy.py HOST:PORT [--listen PORT] [--rate BYTES] [--cut BYTES] [--stall BYTES] [--latency SECONDS]
                        [--direction down|up|both] [--first N]

--rate     at most so many bytes a second, on each connection and in each direction it applies to
--cut      ends the connection with a reset after so many bytes
--stall    passes so many bytes, then nothing more, and keeps the connection open
--latency  waits so long before it passes the first byte
--direction  which way the above applies to; down, the default, is from the server to the client
--first    only the first N connections are treated so; those after them pass freely (a client that tries again gets through)

It prints `listening on PORT` when ready (without --listen the system chooses the port) and a line for each connection that ends:
`connection N: U bytes up, D bytes down, END`, where END is closed, cut or stalled. Ends on SIGTERM or SIGINT. Needs python3 alone.

  tests/remote/proxy.py --self-test     checks all this against a server of its own, in about five seconds
"""

import argparse
import asyncio
import contextlib
import signal
import socket
import struct
import sys
import time


class Cut(Exception):
    """The connection has had its bytes."""


class Way:
    """One direction of a connection."""

    def __init__(self, args, treated):
        self.rate, self.cut, self.stall, self.latency = (
            (args.rate, args.cut, args.stall, args.latency) if treated else (None, None, None, 0)
        )
        self.passed = 0
        self.stalled = False

    async def copy(self, reader, writer):
        started = None
        limit = min((n for n in (self.cut, self.stall) if n is not None), default=None)
        # A slow way takes small bites, so that the bytes drip and do not come in gulps.
        bite = max(1, min(65536, self.rate // 20)) if self.rate else 65536
        while True:
            if limit is not None and self.passed >= limit:
                if self.cut == limit:
                    raise Cut
                self.stalled = True
                await asyncio.Event().wait()
            data = await reader.read(bite if limit is None else min(bite, limit - self.passed))
            if not data:
                break
            if started is None:
                await asyncio.sleep(self.latency)
                started = time.monotonic()
            self.passed += len(data)
            if self.rate:
                await asyncio.sleep(max(0, started + self.passed / self.rate - time.monotonic()))
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


def reset(writer):
    """Closes with a reset, as a network that breaks does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    def __init__(self, args):
        self.args, self.count = args, 0

    async def serve(self, reader, writer):
        self.count += 1
        number = self.count
        treated = self.args.first is None or number <= self.args.first
        up = Way(self.args, treated and self.args.direction in ("up", "both"))
        down = Way(self.args, treated and self.args.direction in ("down", "both"))
        end = "closed"
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.args.target)
        except OSError as error:
            print(f"connection {number}: {error}", flush=True)
            return reset(writer)
        copies = [asyncio.ensure_future(up.copy(reader, far_writer)), asyncio.ensure_future(down.copy(far_reader, writer))]
        try:
            ended, _ = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for copy in ended:
                copy.result()
            # A client that gives up ends a connection that stalled.
            if not (up.stalled or down.stalled):
                await asyncio.gather(*copies)
        except Cut:
            end = "cut"
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for copy in copies:
                copy.cancel()
            if up.stalled or down.stalled:
                end = "stalled"
            for side in (writer, far_writer):
                reset(side) if end == "cut" else side.close()
            print(f"connection {number}: {up.passed} bytes up, {down.passed} bytes down, {end}", flush=True)

    async def start(self):
        # Small buffers: a client sees the rate, not what the kernel keeps for it.
        return await asyncio.start_server(self.serve, "127.0.0.1", self.args.listen, limit=65536)


def arguments(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=lambda text: (text.rpartition(":")[0], int(text.rpartition(":")[2])))
    parser.add_argument("--listen", type=int, default=0)
    parser.add_argument("--rate", type=int)
    parser.add_argument("--cut", type=int)
    parser.add_argument("--stall", type=int)
    parser.add_argument("--latency", type=float, default=0)
    parser.add_argument("--direction", choices=["down", "up", "both"], default="down")
    parser.add_argument("--first", type=int)
    return parser.parse_args(words)


async def run(args):
    server = await Proxy(args).start()
    print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    server.close()


async def self_test():
    body = bytes(range(256)) * 400

    async def origin(reader, writer):
        await reader.read(1)
        writer.write(body)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(origin, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def get(port, limit=5.0):
        """What a client gets, how it ends and how long it takes."""
        started, got = time.monotonic(), b""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        end = "closed"
        try:
            async with asyncio.timeout(limit):
                while data := await reader.read(65536):
                    got += data
        except TimeoutError:
            end = "stalled"
        except ConnectionResetError:
            end = "reset"
        writer.close()
        return got, end, time.monotonic() - started

    async def through(*words):
        proxy = await Proxy(arguments([target, *words])).start()
        return proxy, proxy.sockets[0].getsockname()[1]

    _, port = await through()
    got, end, took = await get(port)
    assert (got, end) == (body, "closed") and took < 1, (len(got), end, took)
    _, port = await through("--rate", "51200")
    got, end, took = await get(port)
    assert (got, end) == (body, "closed") and 1.8 < took < 3, (len(got), end, took)
    _, port = await through("--cut", "1000", "--first", "1")
    got, end, _ = await get(port)
    assert body.startswith(got) and len(got) <= 1000 and end == "reset", (len(got), end)
    got, end, _ = await get(port)
    assert (got, end) == (body, "closed"), (len(got), end)
    _, port = await through("--stall", "1000")
    got, end, _ = await get(port, 1.0)
    assert (len(got), end) == (1000, "stalled"), (len(got), end)
    _, port = await through("--latency", "0.5")
    got, end, took = await get(port)
    assert (got, end) == (body, "closed") and took >= 0.5, (len(got), end, took)
    print("drip, cut, stall, latency and --first do what they say")


if __name__ == "__main__":
    asyncio.run(self_test() if sys.argv[1:] == ["--self-test"] else run(arguments(sys.argv[1:])))
