"""Fixtures and helpers of the package tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer
from tests.conftest import sentences
from tests.small_package import export


def trained_tokenizer(algorithm: Algorithm) -> ArabicTokenizer:
    tokenizer = ArabicTokenizer(300, algorithm)
    tokenizer.build_vocab(sentences(60))
    return tokenizer


def write_key(folder: Path, key: Any, name: str = "key", password: bytes | None = None) -> tuple[Path, Path]:
    """Write files with a private key and its public key."""
    locked = BestAvailableEncryption(password) if password else NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package that a test may edit or damage."""
    return export(tmp_path / "model")


@pytest.fixture(scope="session")
def bpe() -> ArabicTokenizer:
    """A byte-pair tokenizer of 300 tokens."""
    return trained_tokenizer("bpe")
