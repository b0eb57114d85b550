"""A language model behind an OpenAI-compatible endpoint, on this machine or one inside the hospital, never outside.

The name is resolved once, every address that it has is judged, and the connection goes to the address that was judged. No
proxy is used and no redirect is followed: each could lead outside.
"""

import base64
import http.client
import ipaddress
import json
import socket
import ssl
import struct
import zlib
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from ich_client.report_writer import MOST_TOKENS, TEMPERATURE, TOP_P, Slices
from ich_models.errors import ConfigurationError, RunError
from ich_models.strict import Strict

TIMEOUT: Final = 300.0
"""Seconds for one answer: a model on a processor is slow."""

LARGEST_ANSWER: Final = 1_000_000
"""Bytes of a response."""

_INSIDE: Final = tuple(
    ipaddress.ip_network(one) for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
"""Private addresses; link-local ones are not among them: clouds keep their metadata there."""


class EndpointOptions(Strict):
    """An endpoint that a hospital names."""

    kind: Literal["endpoint"] = "endpoint"
    url: str
    """Up to and with the version: http://127.0.0.1:8000/v1. Beyond this machine it must be https."""
    model: str
    """Name of the model, as the endpoint knows it."""

    @model_validator(mode="after")
    def _plain(self) -> Self:
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            sound = False
        if not sound or parts.username or parts.query or parts.fragment:
            raise ValueError(f"'{self.url}' is no address of an endpoint | write it like http://127.0.0.1:8000/v1")
        return self


class Endpoint:
    """An endpoint whose addresses were judged."""

    def __init__(self, options: EndpointOptions) -> None:
        """Raises ConfigurationError for a name that is unknown or leads outside."""
        self.options = options
        parts = urlsplit(options.url)
        self.host, self.secure, self.path = parts.hostname or "", parts.scheme == "https", parts.path.rstrip("/")
        self.port = parts.port or (443 if self.secure else 80)
        self.addresses = resolve(self.host, self.port)
        if not self.secure and not all(address.is_loopback for address in self.addresses):
            raise ConfigurationError(
                f"'{self.host}' is another machine, and http would show the images to the network between",
                hint="use https, or a tunnel (ssh -L) to 127.0.0.1",
            )

    @property
    def identity(self) -> str:
        """Address and model: whoever puts another model behind the same name should name it otherwise."""
        return f"endpoint {self.options.url} {self.options.model}"

    def answer(self, prompt: str, slices: Slices, seed: int) -> str:
        """One completion. Raises RunError for anything but an answer."""
        images = [base64.b64encode(png(one)).decode() for one in slices]
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        content += [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}} for image in images]
        asked = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_tokens": MOST_TOKENS,
            "seed": seed,
            "n": 1,
            "stream": False,
        }
        status, body = self._post(json.dumps(asked).encode())
        if 300 <= status < 400:
            raise self._failed("it redirects elsewhere, which is not followed", "name the place itself in url")
        if status != http.client.OK:
            raise self._failed(
                f"it answers {status}: {body[:200].decode(errors='replace')!r}", "see the endpoint's log"
            )
        try:
            said = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            said = None
        if not isinstance(said, str):
            raise self._failed("its answer is no chat completion", "is url that of an OpenAI-compatible endpoint?")
        return said

    def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the response."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        try:
            connection.sock = self._connect()
            connection.request("POST", f"{self.path}/chat/completions", body, headers)
            response = connection.getresponse()
            content = response.read(LARGEST_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(f"it cannot be asked: {error or type(error).__name__}", "is it running?") from error
        finally:
            connection.close()
        if len(content) > LARGEST_ANSWER:
            raise self._failed(f"its answer is larger than {LARGEST_ANSWER:,} bytes", "is it the right place?")
        return response.status, content

    def _connect(self) -> socket.socket:
        """To an address that was judged, whatever the name may lead to by now."""
        last: OSError | None = None
        for address in self.addresses:
            try:
                plain = socket.create_connection((str(address), self.port), TIMEOUT)
            except OSError as error:
                last = error
                continue
            return ssl.create_default_context().wrap_socket(plain, server_hostname=self.host) if self.secure else plain
        raise last or OSError("no address")

    def _failed(self, message: str, hint: str) -> RunError:
        return RunError(f"the language model at {self.options.url}: {message}", hint=hint)


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def resolve(host: str, port: int) -> list[Address]:
    """Every address of a name. Raises ConfigurationError if there is none, or one of them is not inside."""
    try:
        found = {ipaddress.ip_address(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"'{host}' is not known: {error}", hint="name a machine inside the hospital, or 127.0.0.1"
        ) from error
    if outside := sorted(str(address) for address in found if not inside(address)):
        raise ConfigurationError(
            f"'{host}' leads outside the hospital ({', '.join(outside)})",
            hint="a language model may be asked on this machine or at a private address alone: no image leaves",
        )
    return sorted(found, key=lambda address: (address.version, int(address)))


def inside(address: Address) -> bool:
    """Whether an address is this machine's own or a private one."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or any(address.version == net.version and address in net for net in _INSIDE)


def png(image: NDArray[np.uint8]) -> bytes:
    """A grey image (H, W) as PNG, without any text or time in it."""
    height, width = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image], axis=1)  # filter 0 before each row
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
