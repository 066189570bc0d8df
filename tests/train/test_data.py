from __future__ import annotations

import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wolong_fx.errors import NoText, TextTooShort
from wolong_fx.train.data import DataConfig, Windows, load_corpus


def whole(config: DataConfig) -> bytes:
    corpus = load_corpus(config)
    return bytes(corpus.train.tolist()) + bytes(corpus.validation.tolist())


def test_the_default_text_is_the_standard_library_of_this_interpreter():
    corpus = load_corpus(DataConfig())
    text = bytes(corpus.train.tolist())
    assert len(text) > 2_000_000
    asyncio = Path(sysconfig.get_path("stdlib"), "asyncio", "events.py").read_bytes()
    assert asyncio[: len(asyncio) // 2] in text
    assert len(corpus.validation) == pytest.approx(0.05 * (len(text) + len(corpus.validation)), rel=0.01)


def test_the_default_text_holds_no_installed_package():
    assert Path(pytest.__file__).read_bytes()[:2000] not in whole(DataConfig())


def test_files_are_read_in_the_order_of_their_names_whatever_the_file_system_says(tmp_path):
    for name in ("b.txt", "a/z.txt", "c.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name} " * 100)
    corpus = load_corpus(DataConfig(path=str(tmp_path), validation=0.5))
    expected = "".join(f"{name} " * 100 for name in ("a.txt", "a/z.txt", "b.txt", "c.txt"))
    assert len(corpus.train) == len(corpus.validation) == len(expected) // 2
    assert bytes(corpus.train.tolist()).startswith(b"a.txt a.txt")
    assert bytes(corpus.validation.tolist()).endswith(b"c.txt c.txt ")


def test_hidden_and_binary_files_are_no_text(tmp_path):
    (tmp_path / "text").write_text("x" * 400)
    (tmp_path / "binary").write_bytes(b"y\0" * 400)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("z" * 400)
    assert set(whole(DataConfig(path=str(tmp_path), validation=0.5))) == {ord("x")}


def test_train_and_validation_share_no_byte_of_a_file(text):
    source = text.read_bytes()
    corpus = load_corpus(DataConfig(path=str(text), validation=0.25))
    assert bytes(corpus.train.tolist()) + bytes(corpus.validation.tolist()) == source
    assert len(corpus.validation) == len(source) // 4


def test_another_text_has_another_digest(text):
    before = load_corpus(DataConfig(path=str(text), validation=0.2)).digest
    text.write_text(text.read_text().replace("loop", "pool", 1))
    assert load_corpus(DataConfig(path=str(text), validation=0.2)).digest != before


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NoText, match="'/nowhere/at/all': it does not exist"):
        load_corpus(DataConfig(path="/nowhere/at/all"))
    with pytest.raises(NoText, match=r"no text file matches '\*.rst'"):
        load_corpus(DataConfig(path=str(tmp_path), pattern="*.rst"))


def test_a_text_too_short_for_one_window_is_told_with_both_sizes(tmp_path):
    (tmp_path / "short").write_text("x" * 1000)
    with pytest.raises(
        TextTooShort, match=r"50 bytes of validation text, windows of data.length=64 need 128"
    ):
        load_corpus(DataConfig(path=str(tmp_path / "short")))


def test_targets_are_the_bytes_after_the_tokens():
    windows = Windows(torch.arange(200, dtype=torch.uint8), 16, seed=0)
    tokens, targets = windows.batch(3, 5)
    assert tokens.shape == targets.shape == (16, 5)
    assert tokens.dtype == torch.int64
    torch.testing.assert_close(targets, tokens + 1)


@given(size=st.integers(32, 400), length=st.integers(1, 16), seed=st.integers(0, 2**40))
def test_an_epoch_sees_each_window_once_and_none_beyond_the_text(size, length, seed):
    windows = Windows(torch.zeros(size, dtype=torch.uint8), length, seed=seed)
    starts = sorted(int(windows._start(p)) for p in range(windows.count))
    assert all(b - a == length for a, b in pairwise(starts))
    assert starts[0] >= 0
    assert starts[-1] + length + 1 <= size


def test_a_position_gives_the_same_batch_however_one_came_there():
    text = torch.randint(256, (1000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    walked, jumped = Windows(text, 8, seed=5), Windows(text, 8, seed=5)
    for position in range(0, 280, 4):  # more than two epochs
        batch = walked.batch(position, 4)
    for mine, theirs in zip(batch, jumped.batch(276, 4), strict=True):
        assert torch.equal(mine, theirs)


def test_seeds_and_epochs_shuffle_differently():
    text = torch.arange(250, dtype=torch.uint8)
    one, two = Windows(text, 8, seed=1), Windows(text, 8, seed=2)
    assert not torch.equal(one.batch(0, 8)[0], two.batch(0, 8)[0])
    assert not torch.equal(one.batch(0, 8)[0], one.batch(one.count, 8)[0])
