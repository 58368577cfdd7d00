"""Whom the server lets in, with a SuperLink that is played here."""

from __future__ import annotations

import json

import pytest

from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.deploy import engine
from fedms.deploy import server as serving
from fedms.deploy.folders import write_deployment

WORDS = ('data.classes=["a", "b"]', "data.source=csv", "data.path=x.csv", "partition.by=iid")


class SuperLink:
    """Keys are unique for ever, as in Flower."""

    def __init__(self):
        self.nodes = {}  # key: [number, status]

    def ask(self, home, *words, **more):
        if words[1] == "ls":
            found = [{"node-id": n, "status": s} for n, s in self.nodes.values()]
            return {"nodes": [node for node in found if node["status"] != "unregistered"]}
        if words[1] == "unregister":
            (node,) = [node for node in self.nodes.values() if node[0] == words[2]]
            node[1] = "unregistered"
            return {}
        assert words[-2:] == ("--name", words[-1])
        with open(words[2]) as file:
            key = file.read()
        if key in self.nodes:
            raise UserError("flwr supernode failed: Public key already in use")
        self.nodes[key] = [str(1000 + len(self.nodes)), "registered"]
        return {"node-id": self.nodes[key][0]}

    def inside(self):
        return sorted(number for number, status in self.nodes.values() if status == "registered")


@pytest.fixture
def link(monkeypatch):
    found = SuperLink()
    monkeypatch.setattr(engine, "ask", found.ask)
    return found


@pytest.fixture
def there(tmp_path):
    return write_deployment(tmp_path / "d", load_config(None, WORDS), ["north", "a b/ü"])


def register(there):
    (there.path / "flower").mkdir(exist_ok=True)
    said = []
    serving.register(there, said.append)
    return said, json.loads((there.path / "flower" / "registered.json").read_text())


def test_who_has_a_key_is_let_in_once(link, there):
    for _ in range(2):
        said, known = register(there)
        assert said == []
        assert link.inside() == ["1000", "1001"] == sorted(node for _, node in known.values())


def test_a_key_that_is_taken_away_is_shut_out_for_good(link, there):
    register(there)
    key = there.path / "nodes" / "north.pub"
    text = key.read_text()
    key.unlink()
    said, known = register(there)
    assert said == ["site north is not let in with its key any more"]
    assert len(link.inside()) == len(known) == 1
    key.write_text(text)
    said, known = register(there)
    assert len(known) == 1
    assert said[0].startswith("site north is not let in: flwr supernode failed: Public key already")
    assert f"try to take {key} away, and fedms deploy --sites north" in said[0]
    key.unlink()
    write_deployment(there.path.parent, load_config(None, WORDS), ["north"])
    said, known = register(there)
    assert (said, len(known), len(link.inside())) == ([], 2, 2)


def test_a_key_that_was_changed_is_taken_in_place_of_the_old_one(link, there):
    register(there)
    (there.path / "nodes" / "north.pub").write_text("another")
    said, known = register(there)
    assert said == ["site north is not let in with its key any more"]
    assert known["north"][0] == "another"
    assert len(link.inside()) == 2


def test_what_was_let_in_but_not_written_down_is_found_again(link, there, monkeypatch):
    """The server was killed in between."""
    whole = serving.write_json

    def dying(path, value):
        if value:
            raise KeyboardInterrupt
        whole(path, value)

    monkeypatch.setattr(serving, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        register(there)
    monkeypatch.setattr(serving, "write_json", whole)
    said, known = register(there)
    assert said == []
    assert link.inside() == sorted(node for _, node in known.values()) == ["1000", "1001"]


def test_of_a_new_superlink_nothing_is_known(link, there):
    register(there)
    link.nodes.clear()
    said, known = register(there)
    assert (said, len(known), len(link.inside())) == ([], 2, 2)


def test_without_keys_nobody_is_let_in(link, there):
    for key in (there.path / "nodes").iterdir():
        key.unlink()
    said, known = register(there)
    assert known == {}
    assert said == [f"no site is let in: no key is in {there.path / 'nodes'}"]
