"""Reads TensorFlow's checkpoints (Saver V2), in which OpenAI published GPT-2, without TensorFlow.

A checkpoint is an index and a data file. The data file is the variables' bytes, one after the
other; the index says where each of them starts. It is a table in LevelDB's format, blocks of sorted
(key, value) pairs: a key is a variable's name, its value a BundleEntryProto
(tensorflow/core/protobuf/tensor_bundle.proto; leveldb/doc/table_format.md).
"""

import itertools
import math
import re
import struct
from pathlib import Path

import crc32c
import torch

from support.commands import InputError
from support.files import wrap_errors

MAGIC = bytes.fromhex("57fb808b247547db")  # the last eight bytes of every table


def read_tf_checkpoint(checkpoint):
    """Yields (name, float32 tensor) for each variable of a checkpoint.

    `checkpoint` is the path of its two files without .index and .data-00000-of-00001. Raises
    InputError where one is missing, cut or altered: blocks and variables are checked against their
    CRC32C.
    """
    index_path, data_path = Path(f"{checkpoint}.index"), Path(f"{checkpoint}.data-00000-of-00001")
    with wrap_errors(index_path):
        data_size = data_path.stat().st_size
        for name, entry in read_entries(index_path.read_bytes()):
            # fields of an entry: 1 dtype, 2 shape, 4 offset, 6 CRC32C
            if entry.get(1) != [1]:
                raise InputError(f"{index_path}: {name} is not of the type float32")
            shape, offset = read_shape(entry), entry.get(4, [0])[0]
            size = 4 * math.prod(shape)
            if offset + size > data_size:
                raise InputError(f"{data_path} is too short: {name} is cut off; download it again")
            tensor = torch.empty(shape, dtype=torch.float32, device="cpu")
            buffer = memoryview(tensor.view(-1).numpy()).cast("B")
            with open(data_path, "rb") as data:
                data.seek(offset)
                data.readinto(buffer)
            if mask_crc(crc32c.crc32c(buffer)) != entry[6][0]:
                raise InputError(f"{data_path} is corrupt: the checksum of {name} is wrong; fetch "
                                 "it again")
            yield name, tensor


def read_openai_weights(folder):
    """Yields (path, name, tensor) for each variable of OpenAI's checkpoint, named as in `GPT2`.

    model/h0/attn/c_attn/w -> h.0.attn.c_attn.weight, model/wte -> wte.weight
    """
    for name, tensor in read_tf_checkpoint(folder / "model.ckpt"):
        name = name.removeprefix("model/").replace("/", ".")
        name = re.sub(r"^h(\d+)\.", r"h.\1.", name)
        name = re.sub(r"\.(w|g)$|(?<=^wte)$|(?<=^wpe)$", ".weight", name)
        name = re.sub(r"\.b$", ".bias", name)
        if tensor.dim() == 3 and len(tensor) == 1:  # a convolution of width 1
            tensor = tensor[0]  # [1, n_in, n_out] -> [n_in, n_out]
        yield folder / "model.ckpt.index", name, tensor


def read_entries(index):
    """The (variable's name, fields of its BundleEntryProto) pairs of an index, given as bytes."""
    if index[-8:] != MAGIC:
        raise ValueError("it does not end as a table does")
    footer = index[-48:]
    _, _, at = read_handle(footer, 0)  # the position of the meta-index, which is empty
    offset, size, _ = read_handle(footer, at)  # the position of the index of blocks
    places = [read_handle(handle, 0)[:2] for _, handle in read_block(index, offset, size)]
    entries = []
    for offset, size in places:
        for name, entry in read_block(index, offset, size):
            if name:  # "" is a header
                entries.append((name.decode(), read_message(entry)))
    return entries


def read_shape(entry):
    """The sizes of a variable's dimensions."""
    shape = read_message(entry[2][0])  # a TensorShapeProto: 2 dimensions, each with 1 size
    return [read_message(dim)[1][0] for dim in shape[2]]


def read_block(table, offset, size):
    """The (key, value) pairs of a block.

    A key is stored as how much of the one before it begins with, and the rest.
    """
    block = table[offset : offset + size]
    (checksum,) = struct.unpack_from("<I", table, offset + size + 1)  # after its kind, which is 0
    if mask_crc(crc32c.crc32c(table[offset : offset + size + 1])) != checksum:
        raise ValueError("the checksum of a block is wrong")
    (restarts,) = struct.unpack("<I", block[-4:])  # places, listed at the end, of whole keys
    end = size - 4 - 4 * restarts
    at, key, pairs = 0, b"", []
    while at < end:
        shared, at = read_varint(block, at)
        rest, at = read_varint(block, at)
        length, at = read_varint(block, at)
        key = key[:shared] + block[at : at + rest]
        at += rest
        pairs.append((key, block[at : at + length]))
        at += length
    return pairs


def read_handle(data, at):
    """The position of a block: (offset, size, next place)."""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return offset, size, at


def read_varint(data, at):
    """An integer in groups of seven bits, lowest first: (value, next place).

    The eighth bit of a byte says that more follow.
    """
    value = 0
    for shift in itertools.count(0, 7):
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at


def read_message(data):
    """A protobuf message as {field number: [values]}; nested messages stay bytes."""
    fields, at = {}, 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = read_varint(data, at)
        elif kind == 2:
            length, at = read_varint(data, at)
            value, at = data[at : at + length], at + length
        else:  # 5
            value, at = struct.unpack_from("<I", data, at)[0], at + 4
        fields.setdefault(number, []).append(value)
    return fields


def mask_crc(crc):
    """The form in which LevelDB and TensorFlow store a CRC32C."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
