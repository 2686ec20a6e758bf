"""A small server that answers as the Hugging Face hub does, with a task from a local folder behind it."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from eval.errors import EvalError
from eval.hest import main
from eval.hest_data import load_task
from eval.hest_download import download

COMMIT = "a" * 40
REPOSITORY = "MahmoodLab/hest-bench"


class Hub(BaseHTTPRequestHandler):
    """Serves `server.folder` as the data set; `server.gated` refuses whoever has no token."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.fetched.append(unquote(urlsplit(self.path).path))
        self.answer(body=True)

    def answer(self, *, body):
        path = unquote(urlsplit(self.path).path)
        if self.server.gated and self.headers.get("Authorization") != "Bearer hf_good":
            return self.reply(
                403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, body
            )
        files = sorted(p for p in self.server.folder.rglob("*") if p.is_file())
        names = [p.relative_to(self.server.folder).as_posix() for p in files]
        if path.startswith(f"/api/datasets/{REPOSITORY}/revision/") or path == f"/api/datasets/{REPOSITORY}":
            if path.endswith("/nope"):
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            listing = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            return self.reply(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        if path.startswith(f"/api/datasets/{REPOSITORY}/tree/"):
            tree = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": hashlib.sha1(n.encode()).hexdigest()}
                for n, f in zip(names, files, strict=True)
            ]
            return self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
        prefix = f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"
        if path.startswith(prefix) and path.removeprefix(prefix) in names:
            content = (self.server.folder / path.removeprefix(prefix)).read_bytes()
            tag = hashlib.sha1(content).hexdigest()
            return self.reply(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, body)
        return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def reply(self, status, content, headers, body):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.gated, server.fetched = bench, False, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def test_a_task_arrives_whole(hub, bench, tmp_path, capsys):
    out = tmp_path / "fetched"
    assert main(["download", "--tasks", "TOY", "--out", str(out), "--endpoint", hub.url]) == 0
    assert f"written: {out / 'TOY'}" in capsys.readouterr().out
    ours, theirs = load_task(out, "TOY"), load_task(bench, "TOY")
    assert ours.data_hash(ours.splits[0]) == theirs.data_hash(theirs.splits[0])


def test_only_the_wanted_task_and_only_once(hub, bench, tmp_path):
    (bench / "OTHER").mkdir()
    (bench / "OTHER" / "big.bin").write_bytes(b"0" * 1000)
    for _ in range(2):
        download(["TOY"], tmp_path / "fetched", endpoint=hub.url)
    assert not (tmp_path / "fetched" / "OTHER").exists()
    assert sum(path.endswith("patches/A.h5") for path in hub.fetched) == 1
    assert not any("OTHER" in path for path in hub.fetched)


def test_a_mirror_from_the_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert download(["TOY"], tmp_path / "fetched") == [tmp_path / "fetched" / "TOY"]


def test_conditions_not_accepted(hub, tmp_path, monkeypatch):
    hub.gated = True
    with pytest.raises(EvalError, match=r"accept the conditions.*HF_TOKEN"):
        download(["TOY"], tmp_path / "fetched", endpoint=hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert download(["TOY"], tmp_path / "fetched", endpoint=hub.url)


def test_no_network(tmp_path, capsys):
    command = ["download", "--tasks", "IDC", "--out", str(tmp_path / "f"), "--endpoint", "http://127.0.0.1:9"]
    assert main(command) == 2
    assert "could not be reached" in capsys.readouterr().err


def test_offline_mode(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EvalError, match="HF_HUB_OFFLINE is set"):
        download(["IDC"], tmp_path / "f", endpoint="http://127.0.0.1:9")


def test_offline_with_a_part_of_a_task(bench, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download(["TOY"], bench, endpoint="http://127.0.0.1:9") == [bench / "TOY"]
    for name in ("var_50genes.json", "patches/B.h5"):
        (bench / "TOY" / name).unlink()
        with pytest.raises(EvalError, match=rf"TOY: not a whole task .*{name}.* Download it again"):
            download(["TOY"], bench, endpoint="http://127.0.0.1:9")


def test_unknown_names(hub, tmp_path):
    with pytest.raises(EvalError, match=r"no task IDCC came from there\. Nearest: IDC"):
        download(["IDCC"], tmp_path / "fetched", endpoint=hub.url)
    with pytest.raises(EvalError, match="no revision 'nope'"):
        download(["TOY"], tmp_path / "fetched2", endpoint=hub.url, revision="nope")
    with pytest.raises(EvalError, match="no such data set"):
        download(["TOY"], tmp_path / "fetched3", endpoint=hub.url, repository="MahmoodLab/other")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--endpoint", "mirror.example.org"], "it must start with https://"),
        (["--repository", "a/b/c"], "--repository 'a/b/c': it must be ORGANISATION/NAME"),
        (["--out", "FILE/under"], "the folder cannot be made"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, more, message):
    (tmp_path / "FILE").touch()
    more = [str(tmp_path / "FILE" / "under") if m == "FILE/under" else m for m in more]
    base = ["download", "--tasks", "IDC", "--out", str(tmp_path / "f"), "--endpoint", "http://127.0.0.1:9"]
    assert main([*base, *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError(""), OSError(28, "No space left on device", "f/A.h5")])
def test_errors_of_any_type_are_one_line(tmp_path, monkeypatch, error):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", failing)
    with pytest.raises(EvalError, match="no message" if isinstance(error, RuntimeError) else "cannot be written"):
        download(["IDC"], tmp_path / "f", endpoint="http://127.0.0.1:9")
