"""A TCP proxy that lets a fixed number of bytes through each second and direction, all connections together.

usage: drip.py LISTEN_PORT TARGET_PORT BYTES_PER_SECOND
"""

import asyncio
import sys

LISTEN, TARGET, RATE = map(int, sys.argv[1:])
TICKS = 10  # pieces per second


class Tap:
    """Hands out permission to send, in turns."""

    def __init__(self):
        self.lock = asyncio.Lock()

    async def wait(self, size):
        async with self.lock:
            await asyncio.sleep(size / RATE)


async def pipe(reader, writer, tap):
    try:
        while data := await reader.read(max(1, RATE // TICKS)):
            await tap.wait(len(data))
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main():
    up, down = Tap(), Tap()

    async def client(reader, writer):
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", TARGET)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pipe(reader, to_writer, up), pipe(to_reader, writer, down))

    # A small buffer, so that bytes that wait here look to the sender as if they were on their way.
    server = await asyncio.start_server(client, "127.0.0.1", LISTEN, limit=64 << 10)
    await server.serve_forever()


asyncio.run(main())
