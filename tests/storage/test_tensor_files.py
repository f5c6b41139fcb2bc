import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from foretune.storage import tensor_files
from foretune.storage.errors import StorageFault
from foretune.storage.tensor_files import TensorFile


@pytest.fixture
def stored(tmp_path):
    torch.manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    tensors = {str(dtype): torch.randn(3, 5).to(dtype) for dtype in dtypes} | {"none of it": torch.zeros(3, 0)}
    save_file(tensors, tmp_path / "tensors.safetensors", metadata={"made by": "a test"})
    return tmp_path / "tensors.safetensors"


def test_every_tensor_is_what_safetensors_itself_reads(stored):
    file = TensorFile(lambda: stored)
    for name, tensor in load_file(stored).items():
        assert file.shape(name) == tuple(tensor.shape)
        found = file.tensor(name)
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)
        found.add_(1)  # the caller's own
        assert torch.equal(file.tensor(name), tensor)


def test_parts_of_several_files_are_their_rows(stored, tmp_path):
    other = {name: tensor + 1 for name, tensor in load_file(stored).items()}
    save_file(other, tmp_path / "other.safetensors")
    files = [TensorFile(lambda: stored), TensorFile(lambda: tmp_path / "other.safetensors")]
    assert files[0].names() == list(load_file(stored))
    for name, tensor in load_file(stored).items():
        found = TensorFile.stacked([(files[0], 2), (files[1], 0), (files[0], 1)], name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, torch.stack((tensor[2], other[name][0], tensor[1])))


def test_nothing_of_the_file_stays_mapped(stored):
    file = TensorFile(lambda: stored)
    file.tensor("torch.float32")
    with open("/proc/self/maps") as maps:
        assert str(stored) not in maps.read()


def test_a_file_that_its_cache_dropped_is_fetched_again(stored, tmp_path):
    fetched = []

    def fetch():
        fetched.append(tmp_path / f"fetched {len(fetched)}")
        return shutil.copyfile(stored, fetched[-1])

    file = TensorFile(fetch)
    fetched[0].unlink()
    assert torch.equal(file.tensor("torch.float16"), load_file(stored)["torch.float16"])
    assert len(fetched) == 2


def test_a_file_cut_short_meanwhile_is_told(stored):
    file = TensorFile(lambda: stored)
    with open(stored, "r+b") as stream:
        stream.truncate(stored.stat().st_size - 200)
    with pytest.raises(StorageFault, match="ends before its tensors do"):
        for dtype in ("float64", "float32", "float16", "bfloat16"):
            file.tensor(f"torch.{dtype}")


def test_files_stay_open_while_they_are_read_but_no_more_than_a_few(stored, monkeypatch):
    def opened():
        return sum(os.path.realpath(f"/proc/self/fd/{number}") == str(stored) for number in os.listdir("/proc/self/fd"))

    monkeypatch.setattr(tensor_files, "MOST_OPEN", len(tensor_files._OpenFile.kept) + 2)
    files = [TensorFile(lambda: stored) for _ in range(3)]
    assert opened() == 0
    for _ in range(2):
        assert all(file.tensor("torch.float32").shape == (3, 5) for file in files)
        assert opened() == 2
    files.clear()
    assert opened() == 0
