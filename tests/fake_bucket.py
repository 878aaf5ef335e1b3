"""A bucket of Google Cloud Storage on the loopback interface, for programs that do not know.

A server keeps objects in memory and speaks the part of the JSON API that gcsfs, tensorstore and
google-cloud-storage use, which all have an environment variable for an emulator. So what runs on
it are the real clients, and a directory, a rename or an append does not exist: `moveTo` and the
other copies are refused, and an audit hook notes every local file that is opened under the name
of a remote one.
"""

import base64
import dataclasses
import email
import functools
import hashlib
import json
import os
import re
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


@dataclasses.dataclass
class Bucket:
    """Objects by `(bucket, name)`, and what is to go wrong.

    Attributes:
      objects: content and generation of each.
      refuse: function of method ("GET", "POST", "DELETE") and object name that gives a status, or
        None where nothing goes wrong.
      delay: seconds that every upload takes.
      violations: uses that no bucket, or no local disk, would bear.
      requests: methods and object names, in order.
    """

    objects: dict[tuple[str, str], tuple[bytes, int]] = dataclasses.field(default_factory=dict)
    refuse: Callable[[str, str], int | None] = lambda method, name: None
    delay: float = 0.0
    violations: list[str] = dataclasses.field(default_factory=list)
    requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    uploads: dict[str, tuple[str, str, bytes]] = dataclasses.field(default_factory=dict)
    generation: int = 1
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def names(self, prefix: str) -> list[str]:
        """Names of the objects below `gs://BUCKET/FOLDER`, relative to it."""
        bucket, _, folder = prefix.removeprefix("gs://").partition("/")
        start = folder.rstrip("/") + "/"
        found = [name for at, name in self.objects if at == bucket and name.startswith(start)]
        return sorted(name.removeprefix(start) for name in found)

    def content(self, address: str) -> bytes:
        """Bytes of an object."""
        bucket, _, name = address.removeprefix("gs://").partition("/")
        return self.objects[bucket, name][0]

    def put(self, bucket: str, name: str, content: bytes) -> dict:
        """Stores an object and returns what the API says of it."""
        with self.lock:
            self.generation += 1
            self.objects[bucket, name] = (content, self.generation)
        return self.described(bucket, name)

    def described(self, bucket: str, name: str) -> dict:
        """The API's object resource."""
        content, generation = self.objects[bucket, name]
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(1.7e9 + generation))
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "timeCreated": moment,
            "updated": moment,
        }

    def put_folder(self, folder: Path, bucket: str, prefix: str) -> None:
        """Stores the files of a local folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder).as_posix()}"
                self.put(bucket, name, path.read_bytes())

    def flip_bit(self, address: str) -> None:
        """Changes one bit in the middle of an object."""
        bucket, _, name = address.removeprefix("gs://").partition("/")
        content = bytearray(self.content(address))
        content[len(content) // 2] ^= 1
        self.put(bucket, name, bytes(content))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: the clients wait for delayed ones
    bucket: Bucket

    def log_message(self, *args) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunked()
        self._route(url.path, query, body)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, path: str, query: dict, body: bytes) -> None:
        if path.startswith("/batch/"):
            return self._batch(body)
        found = re.fullmatch(r"/(?:(\w+)/)?storage/v1/b/([^/]+)(?:/(o|iam.*))?(?:/(.+))?", path)
        if not found:
            return self._send(404, {})
        service, bucket, _, name = found.groups()
        name = unquote(name or "")
        method = "POST" if self.command == "PUT" else self.command
        self.bucket.requests.append((method, name or query.get("name", query.get("prefix", ""))))
        if re.search(r"/(moveTo|rewriteTo|copyTo|compose)\b", path):
            self.bucket.violations.append(f"{self.command} {path}")
            return self._send(403, {"error": {"message": "no renames here"}})
        if service == "upload":
            return self._upload(bucket, query, body)
        if status := self.bucket.refuse(method, name):
            return self._send(status, {"error": {"code": status, "message": "refused"}})
        if not found[3]:
            return self._send(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
        if not name:
            return self._send(200, self._listing(bucket, query))
        return self._object(bucket, name, query, is_media=service == "download")

    def _object(self, bucket: str, name: str, query: dict, *, is_media: bool) -> None:
        stored = self.bucket.objects.get((bucket, name))
        status = self._precondition(stored, query)
        if stored is None or status:
            return self._send(status or 404, {"error": {"code": 404, "message": name}})
        if self.command == "DELETE":
            del self.bucket.objects[bucket, name]
            return self._send(204)
        if not is_media and query.get("alt") != "media":
            return self._send(200, self.bucket.described(bucket, name))
        content, generation = stored
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._send(200, content, headers)
        first = int(wanted[1]) if wanted[1] else max(0, len(content) - int(wanted[2]))
        last = int(wanted[2]) + 1 if wanted[1] and wanted[2] else len(content)
        if first >= len(content):
            return self._send(416, b"", headers)
        part = content[first:last]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return self._send(206, part, headers)

    @staticmethod
    def _precondition(stored: tuple[bytes, int] | None, query: dict) -> int | None:
        generation = str(stored[1]) if stored else "0"
        if query.get("ifGenerationMatch", generation) != generation:
            return 412
        return 304 if stored and query.get("ifGenerationNotMatch") == generation else None

    def _listing(self, bucket: str, query: dict) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for at, name in sorted(self.bucket.objects):
            if at != bucket or not name.startswith(prefix):
                continue
            if name < query.get("startOffset", "") or name >= query.get("endOffset", "\U0010ffff"):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self.bucket.described(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _upload(self, bucket: str, query: dict, body: bytes) -> None:
        kind, name = query["uploadType"], query.get("name", "")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            start = body.index(b"\n\n", body.index(b"application/json")) + 2
            meta, _, rest = body[start:].partition(b"\n--==0==")
            if b"==0==" not in body[:9]:  # google-cloud-storage's own boundary
                parts = email.message_from_bytes(head + body).get_payload()
                meta, content = (part.get_payload(decode=True) for part in parts)
            else:
                content = rest[rest.index(b"\n\n") + 2 : rest.rindex(b"\n--==0==--")]
            name = json.loads(meta)["name"]
        elif kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body or b"{}")["name"]
            key = str(len(self.bucket.uploads))
            self.bucket.uploads[key] = (bucket, name, b"")
            location = f"http://{self.headers['Host']}{self.path}&upload_id={key}"
            return self._send(200, {}, {"Location": location})
        elif kind == "resumable":
            bucket, name, before = self.bucket.uploads[query["upload_id"]]
            content = before + body
            self.bucket.uploads[query["upload_id"]] = (bucket, name, content)
            total = self.headers.get("Content-Range", "/*").rpartition("/")[2]
            if total == "*" or int(total) > len(content):
                return self._send(308, b"", {"Range": f"bytes=0-{len(content) - 1}"})
        else:
            content = body
        time.sleep(self.bucket.delay)
        if status := self.bucket.refuse("POST", name):
            return self._send(status, {"error": {"code": status, "message": "refused"}})
        if status := self._precondition(self.bucket.objects.get((bucket, name)), query):
            return self._send(status, {"error": {"code": status, "message": name}})
        return self._send(200, self.bucket.put(bucket, name, content))

    def _batch(self, body: bytes) -> None:
        answers = []
        for bucket, name in re.findall(rb"DELETE /storage/v1/b/([^/]+)/o/(\S+) HTTP", body):
            key = (unquote(bucket.decode()), unquote(name.decode()))
            self.bucket.requests.append(("DELETE", key[1]))
            status = self.bucket.refuse("DELETE", key[1])
            if not status:
                status = 204 if self.bucket.objects.pop(key, None) else 404
            answers.append(f"\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} X\r\n\r\n")
        text = "--frontier".join(["", *answers, "--"])
        self._send(200, text.encode(), {"Content-Type": "multipart/mixed; boundary=frontier"})

    def _send(self, status: int, content: dict | bytes = b"", headers: dict | None = None) -> None:
        body = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        kind = {"Content-Type": "application/json"} if isinstance(content, dict) else {}
        for key, value in (kind | (headers or {})).items():
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(body)


def environment(url: str) -> dict[str, str]:
    """What makes the three clients speak to this server, without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "TENSORSTORE_GCS_HTTP_VERSION": "1",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
        "GOOGLE_CLOUD_PROJECT": "nowhere",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # its gRPC control plane is not emulated
    }


@functools.cache
def start() -> tuple[Bucket, str]:
    """The bucket and the URL of its server, one for all tests of a process: clients keep the URL.

    From then on an audit hook notes every local use of a remote address, see `violations`.
    """
    bucket = Bucket()
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def audit(event: str, arguments: tuple) -> None:
        # Pytest puts the name of each test, which may have an address in it, into an environment.
        if event.startswith(("open", "os.", "shutil.")) and event != "os.putenv":
            names = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            if any("gs:/" in os.fsdecode(name) for name in names):
                bucket.violations.append(f"local {event}{tuple(map(str, names))}")

    sys.addaudithook(audit)  # there is no way to remove one
    return bucket, f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[types.SimpleNamespace]:
    """`bucket`, and a machine whose disk is for copies alone: `cache`, and `here`, where it is."""
    place = tmp_path_factory.mktemp("machine")
    (place / "here").mkdir()
    bucket, url = start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(url).items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(place))
        patch.chdir(place / "here")
        # Whatever this machine has: there is no room for copies, where a test does not make some.
        full = types.SimpleNamespace(total=10**12, free=10**11)
        patch.setattr("negclip_jax.common.remote.shutil.disk_usage", lambda _: full)
        yield types.SimpleNamespace(bucket=bucket, cache=place / "negclip_jax", here=place / "here")
    bucket.objects.clear()


@pytest.fixture
def bucket(served) -> Iterator[Bucket]:
    """The bucket, which at the end must not have been taken for a disk."""
    yield served.bucket
    found, served.bucket.violations = served.bucket.violations, []
    served.bucket.refuse, served.bucket.delay = (lambda method, name: None), 0.0
    assert not found, found
    assert not list(served.here.iterdir()), "a local folder was made for a remote one"
