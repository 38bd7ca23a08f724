"""Downloads against a stand-in of the hub: licence first, resumed, checked, recorded."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save
from support.hub import COMMIT, Hub, running
from support.shards import two_shards
from support.small_network import STACK, open_state

from qvggt_core.errors import CheckpointError
from qvggt_core.model import read_checkpoint
from qvggt_core.model.catalog import CATALOG, find_network
from qvggt_core.model.download import download
from qvggt_core.model.published_names import depth_anything_3_names

LICENCE = b"Apache License\nVersion 2.0, January 2004\n" * 20
CARD = b"---\nlicense: apache-2.0\n---\n# A network\n"
CONFIG = json.dumps({"config": {"net": {"out_layers": list(STACK.taps)}}}).encode()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    state = open_state(STACK)
    published = depth_anything_3_names(state)
    return {published[name]: tensor.contiguous() for name, tensor in state.items()}


@pytest.fixture
def hub(weights):
    files = {
        "README.md": CARD,
        "LICENSE": LICENCE,
        "config.json": CONFIG,
        "model.safetensors": save(weights),
    }
    with running(Hub("depth-anything/DA3-SMALL", files)) as served:
        yield served


def agree(offer) -> bool:
    return True


def test_a_download_is_a_network_with_its_licence(hub, tmp_path) -> None:
    offers = []

    def look(offer) -> bool:
        offers.append(offer)
        return True

    path = download("da3-small", tmp_path, look, hub.endpoint)
    assert path == tmp_path / "da3-small" / "model.safetensors"
    (offer,) = offers
    assert (offer.commit, offer.licence_id) == (COMMIT, "apache-2.0")
    assert offer.licence_text == LICENCE.decode()
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == replace(STACK, img_size=504)
    assert checkpoint.metadata["licence"] == "apache-2.0"
    assert checkpoint.metadata["licence_text"] == LICENCE.decode()
    assert checkpoint.metadata["source"] == f"depth-anything/DA3-SMALL@{COMMIT}"
    # The folder is the same network.
    assert read_checkpoint(path.parent).names() == checkpoint.names()


def test_nothing_is_written_before_the_licence_is_agreed_to(hub, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="not agreed"):
        download("da3-small", tmp_path, lambda offer: False, hub.endpoint)
    assert not list(tmp_path.iterdir())


def test_without_a_licence_file_the_card_is_shown(hub, tmp_path) -> None:
    del hub.files["LICENSE"]
    download("da3-small", tmp_path, agree, hub.endpoint)
    source = json.loads((tmp_path / "da3-small" / "source.json").read_text())
    assert source["licence_text"] == CARD.decode()


def test_an_interrupted_download_goes_on_where_it_stopped(hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    whole = hub.files["model.safetensors"]
    hub.cut_after = 1 << 18
    with pytest.raises(CheckpointError, match="run the same command again"):
        download("da3-small", tmp_path, agree, hub.endpoint)
    assert not (tmp_path / "da3-small" / "model.safetensors").exists()
    hub.cut_after, hub.refuses = None, False
    hub.ranges.clear()
    path = download("da3-small", tmp_path, agree, hub.endpoint)
    assert path.read_bytes() == whole
    (start,) = (int(each.removeprefix("bytes=").split("-")[0]) for each in hub.ranges)
    assert 0 < start < len(whole)


def test_a_file_with_another_hash_is_removed_and_named(hub, tmp_path) -> None:
    hub.promised["model.safetensors"] = "ab" * 32
    with pytest.raises(CheckpointError, match=r"has the hash .*removed, download it again"):
        download("da3-small", tmp_path, agree, hub.endpoint)
    assert not (tmp_path / "da3-small" / "model.safetensors").exists()


def test_a_pointer_in_place_of_the_weights_is_recognised(hub, tmp_path) -> None:
    hub.files["model.safetensors"] = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4f" * 32 + b"\nsize 99\n"
    )
    with pytest.raises(CheckpointError, match="Git LFS pointer to a file of 99 bytes"):
        download("da3-small", tmp_path, agree, hub.endpoint)


def test_shards_come_with_their_index_and_load_by_it(weights, tmp_path) -> None:
    parts, places = two_shards(weights)
    files = {file: save({n: weights[n] for n in chosen}) for file, chosen in parts.items()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    files["config.json"] = CONFIG
    with running(Hub("somebody/sharded", files)) as hub:
        path = download("somebody/sharded", tmp_path, agree, hub.endpoint)
    assert path.name == "model.safetensors.index.json"
    checkpoint = read_checkpoint(path.parent)
    assert len(checkpoint.names()) == len(weights)
    assert checkpoint.metadata["source"].startswith("somebody/sharded@")


@pytest.mark.parametrize(
    "index",
    [b"{}", b"[]", b"{", b'{"weight_map": 3}', b'{"weight_map": {"a": "../b"}}', b"[" * 99_999],
)
def test_an_index_on_the_hub_that_is_none_is_named(tmp_path, index: bytes) -> None:
    files = {"model.safetensors.index.json": index, "README.md": b"---\n---\n"}
    with (
        running(Hub("somebody/sharded", files)) as hub,
        pytest.raises(CheckpointError, match="index"),
    ):
        download("somebody/sharded", tmp_path, agree, hub.endpoint)


def test_a_gated_repository_says_what_to_do(hub, tmp_path) -> None:
    hub.gated = True
    with pytest.raises(CheckpointError, match=r"is gated: accept its terms .*hf auth login"):
        download("da3-small", tmp_path, agree, hub.endpoint)


def test_a_repository_that_is_not_there_is_named(hub, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"the hub has no facebook/VGGT-1B"):
        download("vggt-1b", tmp_path, agree, hub.endpoint)


def test_a_hub_that_cannot_be_reached_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        download("da3-small", tmp_path, agree, "http://127.0.0.1:9")


def test_a_repository_without_weights_lists_what_it_has(hub, tmp_path) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(CheckpointError, match="has 0 files of weights"):
        download("da3-small", tmp_path, agree, hub.endpoint)


def test_a_disk_that_is_too_small_is_refused_before_the_download(
    hub, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(CheckpointError, match="choose another directory"):
        download("da3-small", tmp_path, agree, hub.endpoint)


def test_names_are_those_of_the_catalogue_or_of_the_hub() -> None:
    assert find_network("depth-anything/da3-small@v1").revision == "v1"
    assert find_network("depth-anything/da3-small").name == "da3-small"
    assert find_network("someone/some-net").repository == "someone/some-net"
    with pytest.raises(CheckpointError, match="da3-small, da3-base"):
        find_network("da3-tiny")
    assert {name for name, n in CATALOG.items() if n.config is None} == set()
