"""A server that answers huggingface_hub as the Hugging Face Hub does, for models of small files."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + 34 * "0"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each its files by name; `created` are the requests that made them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories, self.created = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        given = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(given))
            self._send({"url": f"{self.server.url}/me/darcy"})
        elif self.path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(given)["files"]]
            self._send({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            entries = [entry["value"] for entry in map(json.loads, given.splitlines()) if entry["key"] == "file"]
            self.server.repositories[name] = {entry["path"]: base64.b64decode(entry["content"]) for entry in entries}
            self._send({"success": True, "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._send({}, 404)

    def do_GET(self):
        _, *parts = self.path.split("?")[0].split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.server.repositories.get(name)
        if files is None:
            self._send({}, 404, X_Error_Code="RepoNotFound")
        elif "resolve" in parts:
            self._send(files[parts[-1]], ETag=f'"{hashlib.sha1(files[parts[-1]]).hexdigest()}"')
        elif "tree" in parts:
            self._send([{"type": "file", "path": path, "size": len(held), "oid": path} for path, held in files.items()])
        else:
            self._send({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})

    do_HEAD = do_GET

    def _send(self, body, status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        """Quiet."""
