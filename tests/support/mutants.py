"""Damage results files in many ways, and use what can still be read of them."""

import io
import json
import random
import struct
import warnings
import zipfile

import numpy as np

from lightning_neuroimp.display.figures.agreement import agreement_figure
from lightning_neuroimp.display.figures.deletion import deletion_figure
from lightning_neuroimp.display.figures.specificity import specificity_figure
from lightning_neuroimp.display.samples import exemplar_rows, neuron_rows, shown_samples, top_neurons
from lightning_neuroimp.display.summary import markdown, summary
from lightning_neuroimp.display.tags import cluster_tags, site_tag
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.history import agreement
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement

VALUES = [None, True, False, 0, 1, -1, 7, 2**31, -(2**63), 10**30, 0.5, -0.5, 1e308, "", "x", "label 0", "1",
          "\x1b[31m", "a" * 5000, "é世", [], {}, {"tuple": []}, {"float": "Infinity"}, {"dict": {}},
          {"array": "a0"}, {"array": "a3"}, {"float": "-Infinity"}, {"array": "header"}, [[]],
          {"class": "Site", "fields": {}}]  # fmt: skip


def read(content):
    """Return the header and the arrays of a file."""
    with np.load(io.BytesIO(content)) as file:
        arrays = {key: file[key] for key in file.files}
    return json.loads(arrays.pop("header").tobytes()), arrays


def write(header, arrays):
    """Return the file of a header and arrays."""
    buffer = io.BytesIO()
    text = json.dumps(header).encode()
    np.savez_compressed(buffer, header=np.frombuffer(text, np.uint8), **arrays)
    return buffer.getvalue()


def places(tree, found=None):
    """List all containers of a tree of JSON with the keys in them."""
    found = [] if found is None else found
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        found.append((tree, key))
        if isinstance(tree[key], dict | list):
            places(tree[key], found)
    return found


def bytes_mutant(content, dice):
    """Change bytes: flip, cut, repeat, swap or insert."""
    data = bytearray(content)
    kind = dice.randrange(6)
    start = dice.choice([dice.randrange(len(data)), len(data) - 1 - dice.randrange(min(4000, len(data)))])
    if kind == 0:
        for _ in range(dice.choice([1, 1, 3, 30])):
            data[dice.randrange(len(data))] = dice.randrange(256)
    elif kind == 1:
        data[start] ^= 1 << dice.randrange(8)
    elif kind == 2:
        del data[start : start + dice.choice([1, 4, 100, 10**6])]
    elif kind == 3:
        data[start:start] = data[start : start + dice.choice([1, 8, 500])]
    elif kind == 4:
        data[start : start + 4] = struct.pack("<I", dice.choice([0, 1, 2**31, 2**32 - 1]))
    else:
        data[start:start] = dice.randbytes(dice.choice([1, 16, 64]))
    return bytes(data)


def header_mutant(content, dice):
    """Change the tree of the header: replace, remove, add, repeat or swap parts."""
    header, arrays = read(content)
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        found = places(header["results"]) if isinstance(header.get("results"), dict) else places(header)
        if not found:
            break
        holder, key = dice.choice(found)
        kind = dice.randrange(5)
        if kind <= 1:
            holder[key] = json.loads(json.dumps(dice.choice(VALUES)))
        elif kind == 2:
            del holder[key]
        elif kind == 3 and isinstance(holder, list):
            holder.insert(key, json.loads(json.dumps(holder[key])))
        elif kind == 3:
            holder[dice.choice(["extra", "epoch", "ids", "class", "tuple"])] = json.loads(json.dumps(holder[key]))
        else:
            other, _ = dice.choice(found)
            if key in (other if isinstance(other, dict) else range(len(other))):
                holder[key] = json.loads(json.dumps(dice.choice(found)[0]))
    return write(header, arrays)


def array_mutant(content, dice):
    """Change an array: its type, its shape or its values."""
    header, arrays = read(content)
    for _ in range(dice.choice([1, 1, 2, 4])):
        key = dice.choice(sorted(arrays))
        array = arrays[key]
        kind = dice.randrange(8)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if kind == 0:
                kinds = ["f2", "f4", ">f8", "i1", "u8", "c16", "S3", "U2", "M8[s]", "?", "i4,f4"]
                array = np.zeros(array.shape, dice.choice(kinds)) if dice.random() < 0.5 else array.astype("f4")
            elif kind == 1:
                array = array[:-1] if array.ndim else array.reshape(1)
            elif kind == 2:
                array = np.concatenate([array, array]) if array.ndim else array
            elif kind == 3:
                array = array[None] if dice.random() < 0.5 else array.reshape(-1)
            elif kind == 4:
                array = array.T if array.ndim > 1 else array[:0]
            elif array.size and array.dtype.kind in "if":
                array = array.copy()
                odd = [-1, 0, 1, 10**6, -(10**12), 2**62]
                odd += [np.nan, np.inf, -np.inf, 1e300, -0.0] if array.dtype.kind == "f" else []
                value = dice.choice(odd)
                if kind == 5:
                    array[...] = value
                else:
                    array.reshape(-1)[dice.randrange(array.size)] = value
        arrays[key] = array
    return write(header, arrays)


MUTATIONS = (bytes_mutant, header_mutant, array_mutant)


def mutants(content, n, seed=0):
    """Yield files that are damaged in one of three ways each."""
    for number in range(n):
        dice = random.Random(seed * 10**6 + number)
        yield MUTATIONS[number % len(MUTATIONS)](content, dice)


def crafted(content):
    """Yield names and files that were made to harm: bombs, foreign types, nesting, encryption, versions."""
    header, arrays = read(content)

    def packed(members, method=zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as file:
            for name, data in members:
                file.writestr(name, data)
        return buffer.getvalue()

    def npy(dtype, shape, data=b"", version=(1, 0)):
        text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
        text += b" " * (-(len(text) + 11) % 64) + b"\n"
        size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
        return b"\x93NUMPY" + bytes(version) + size + text + data

    def with_header(tree):
        return [("header.npy", npy("|u1", (len(tree),), tree))]

    plain = json.dumps(header).encode()
    rest = [(f"{key}.npy", npy(array.dtype.str, array.shape, array.tobytes())) for key, array in arrays.items()]
    whole = [*with_header(plain), *rest]
    yield "whole", packed(whole)  # which is fine
    for dtype in ("<f8", "|u1", "<i8", "|b1", "|O", "<U9999", "|V8", ">f8", "<c16", "<M8[s]", "<f16"):
        for shape in ((2**40,), (2**31, 2**31), (-1,), (10**9, 0), (2**62, 4), (0,) * 40):
            yield f"{dtype} {shape}", packed([("header.npy", npy(dtype, shape)), *rest])
            yield f"a0 {dtype} {shape}", packed([*with_header(plain), ("a0.npy", npy(dtype, shape)), *rest[1:]])
    zeros = npy("<f8", (2**28,), bytes(2**20)) + bytes(2**24)
    yield "bomb", packed([*with_header(plain), ("a0.npy", zeros), *rest[1:]])
    yield (
        "many",
        packed([*whole, *((f"a{number}.npy", npy("<f8", (2**17,), bytes(2**20))) for number in range(900, 960))]),
    )
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"method {method}", packed(whole, method)
    for text in (
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b"[" + b"[]," * 10**6 + b"[]]",
        b'{"results":[' + b"1," * 10**6 + b"1]}",
    ):
        yield f"nested {text[:8]!r} {len(text)}", packed([*with_header(text), *rest])
    for bad in (b"NaN", b"1e999", b"null", b'"x"', b"[]", b"", b"\xff", b"{}", b'{"format":1}', b"\x00" * 9):
        yield f"header {bad!r}", packed([*with_header(bad), *rest])
    for version in (0, -1, 3, 10**9, "7", 7.0, None, True, [], {}):
        yield f"version {version!r}", packed([*with_header(json.dumps({**header, "version": version}).encode()), *rest])
    encrypted = bytearray(packed(whole))
    for place in [at for at in range(len(encrypted)) if encrypted[at : at + 4] in (b"PK\x03\x04", b"PK\x01\x02")]:
        encrypted[place + (6 if encrypted[place + 2] == 3 else 8)] |= 1
    yield "encrypted", bytes(encrypted)
    yield "two of a name", packed([*whole, whole[1]])
    yield "no arrays", packed([("header.txt", b"x")])
    yield "a folder", packed([("header/", b""), *rest])
    yield "pickle", packed([("header.npy", npy("|O", (1,), b"cos\nsystem\n(S'true'\ntR.")), *rest])
    for version in ((2, 0), (3, 0), (9, 9)):
        yield f"format {version}", packed([("header.npy", npy("|u1", (len(plain),), plain, version)), *rest])
    for size in (0, 1, 2**31, 2**32 - 1):
        data = bytearray(packed(whole))
        end = data.rfind(b"PK\x01\x02")
        data[end + 24 : end + 28] = struct.pack("<I", size)  # the size that the directory declares
        yield f"declared {size}", bytes(data)


def use(results):
    """Do everything that is done with results: put them into words, draw them, compare them."""
    repr(results)
    summary(results, all_findings=True)
    markdown(results, "name")
    results.summary()
    diagnose(results)
    PreviousMeasurement.of(results)
    cluster_tags(results.clusters)
    shown_samples(results)
    exemplar_rows(results)
    for key, importance in results.items():
        assert results[key] is importance
        site_tag("name", importance, results)
        agreement(results, importance)
        for cluster in results.clusters.ids.tolist():
            importance.top(cluster)
        for name in ("std", "stderr", "deviation", "first_order", "abs_mean"):
            getattr(importance, name)
    for site in results.sites:
        top_neurons(results, site)
        if any(activity.site == site for activity in results.activities):
            results.activity(site)
            neuron_rows(results, site)
        if all(importance.faithfulness is not None for importance in results.importances):
            deletion_figure(results, site)
            if any(importance.faithfulness.specificity is not None for importance in results.importances):
                specificity_figure(results, site)
        agreement_figure([agreement(results, results[site])], site)
