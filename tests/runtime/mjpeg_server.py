"""A camera on the network: serves motion JPEG over HTTP, to be killed, stalled and started again.

    python mjpeg_server.py PORT [--fps N] [--first N] [--stall-after N] [--size WxH]
                                [--damage KIND]

Frame n is a stripe pattern from which `number_in` reads n again. Each tenth frame is damaged as KIND says:
cut off in its middle, filled with noise, of another size, or black.
"""

import argparse
import socketserver
import sys
import time

import cv2
import numpy as np

BITS = 16
_BOUNDARY = b"frame"


def numbered_frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame of vertical stripes: the bits of its number, dark and light."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    columns = np.repeat(np.array(bits, np.uint8) * 160 + 48, width // BITS)
    return np.ascontiguousarray(np.broadcast_to(columns[None, :, None], (height, len(columns), 3)))


def number_in(image: np.ndarray) -> int:
    """The number of a frame."""
    stripes = np.array_split(image.astype(np.float64), BITS, axis=1)
    return sum(int(stripe.mean() > 128) << bit for bit, stripe in enumerate(stripes))


def encoded(number: int, width: int, height: int, damage: str | None) -> bytes:
    """A frame as JPEG, or what a bad connection makes of it."""
    frame = numbered_frame(number, width, height)
    if damage == "size":
        frame = numbered_frame(number, width * 2, height * 2)
    elif damage == "black":
        frame[:] = 0
    data = cv2.imencode(".jpg", frame)[1].tobytes()
    if damage == "cut":
        data = data[: len(data) * 2 // 3]
    elif damage == "noise":
        noise = np.random.default_rng(number).integers(0, 256, len(data) // 2, np.uint8).tobytes()
        data = data[: len(data) - len(noise)] + noise
    return data


class _Handler(socketserver.BaseRequestHandler):
    options: argparse.Namespace
    sent = 0

    def handle(self) -> None:
        self.request.recv(65536)
        options = self.options
        self.request.sendall(
            b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=" + _BOUNDARY + b"\r\n\r\n"
        )
        width, height = map(int, options.size.split("x"))
        try:
            while True:
                if options.stall_after and _Handler.sent >= options.stall_after:
                    time.sleep(3600)
                number = options.first + _Handler.sent
                _Handler.sent += 1
                data = encoded(number, width, height, options.damage if number % 10 == 9 else None)
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                self.request.sendall(b"--" + _BOUNDARY + b"\r\n" + head + data + b"\r\n")
                time.sleep(1 / options.fps)
        except OSError:
            return  # the client went away


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--fps", type=float, default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--stall-after", type=int, default=0)
    parser.add_argument("--size", default="64x48")
    parser.add_argument("--damage", choices=["cut", "noise", "size", "black"])
    _Handler.options = parser.parse_args()
    with _Server(("127.0.0.1", _Handler.options.port), _Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
