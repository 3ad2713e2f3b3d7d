"""Statistics of other programs: the same distance as scipy's, or an error in one sentence."""

import pickle

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from eval.features.extractors import extractor
from eval.metrics.fid import FrechetTo
from eval.metrics.reference import Reference, reference, save

WIDTH = 192
RNG = np.random.default_rng(0)
FEATURES, OTHERS = RNG.normal(size=(400, WIDTH)), RNG.normal(0.1, 1.2, size=(500, WIDTH))
MU, SIGMA = FEATURES.mean(0), np.cov(FEATURES, rowvar=False)


def scipy_distance(mu, sigma):
    mean, covariance = OTHERS.mean(0), np.cov(OTHERS, rowvar=False)
    root = sqrtm(sigma @ covariance).real
    return ((mean - mu) ** 2).sum() + np.trace(covariance) + np.trace(sigma) - 2 * np.trace(root)


def distance(path):
    found = reference(str(path), extractor("pixels"))
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    return FrechetTo(found.mean, found.covariance).distance(
        torch.from_numpy(OTHERS.mean(0)), torch.from_numpy(np.cov(OTHERS, rowvar=False))
    )


@pytest.mark.parametrize(
    ("arrays", "dtype"),
    [
        ({}, np.float64),
        ({}, np.float32),
        ({}, np.dtype(">f8")),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "mu_s": np.zeros(7), "sigma_s": np.eye(7)}, np.float64),  # ADM
        ({"labels": np.array([1, 2])}, np.float64),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_statistics_of_other_programs_give_scipys_distance(tmp_path, arrays, dtype, save):
    mu, sigma = MU.astype(dtype), SIGMA.astype(dtype)
    save(tmp_path / "a.npz", mu=mu, sigma=sigma, **arrays)
    expected = scipy_distance(mu.astype(np.float64), sigma.astype(np.float64))
    assert distance(tmp_path / "a.npz") == pytest.approx(expected, rel=1e-8)


def broken():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    nan, asymmetric = np.full(WIDTH, np.nan), SIGMA.copy()
    asymmetric[0, 1] += 1
    return {
        "samples only": (lambda file: np.savez(file, np.zeros((4, 8, 8, 3), np.uint8)), "mu"),
        "nan": (lambda file: np.savez(file, mu=nan, sigma=SIGMA), "mu in .* must be finite"),
        "inf": (lambda file: np.savez(file, mu=MU, sigma=SIGMA * np.inf), "sigma in .* must be finite"),
        "nan features": (lambda file: np.savez(file, mu=MU, sigma=SIGMA, features=nan[None]), "features in .* finite"),
        "features": (lambda file: np.savez(file, mu=MU, sigma=SIGMA, features=np.zeros((4, 3))), r"shape \(N, 192\)"),
        "asymmetric": (lambda file: np.savez(file, mu=MU, sigma=asymmetric), "must be symmetric"),
        "shapes": (lambda file: np.savez(file, mu=MU[None], sigma=SIGMA), r"shapes \(D,\) and \(D, D\)"),
        "empty": (lambda file: file.write(b""), ""),
        "html": (lambda file: file.write(b"<html>404</html>"), ""),
        "pickle": (lambda file: pickle.dump({"fid": {"mu": MU, "sigma": Trap()}}, file), ""),  # EDM2
        "objects": (lambda file: np.savez(file, mu=np.array([Trap()] * WIDTH), sigma=SIGMA, allow_pickle=True), ""),
        "array": (lambda file: np.save(file, MU), ""),
        "words": (lambda file: np.savez(file, mu=np.array(["a"] * WIDTH), sigma=SIGMA), ""),
    }


@pytest.mark.parametrize("case", broken())
def test_other_files_are_errors_of_one_line_and_no_pickle_is_loaded(tmp_path, case):
    write, message = broken()[case]
    with (tmp_path / "a.npz").open("wb") as file:
        write(file)
    with pytest.raises(ValueError, match=message or r"a\.npz must be an \.npz with the arrays mu and sigma") as error:
        reference(str(tmp_path / "a.npz"), extractor("pixels"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.9, 0.999])
def test_truncated_files_are_errors(tmp_path, part):
    np.savez_compressed(tmp_path / "a.npz", mu=MU, sigma=SIGMA)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"must be an \.npz with the arrays mu and sigma"):
        reference(str(tmp_path / "a.npz"), extractor("pixels"))


def test_damaged_bytes_are_errors(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", mu=MU, sigma=SIGMA)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"must be an \.npz with the arrays mu and sigma"):
        reference(str(tmp_path / "a.npz"), extractor("pixels"))


def stored_reference(path):
    """The arrays of a reference that `save` wrote."""
    features = torch.from_numpy(FEATURES).float()
    found = Reference(torch.from_numpy(MU), torch.from_numpy(SIGMA), features)
    save(path, found, extractor("pixels"), 32)
    with np.load(path) as arrays:
        return dict(arrays)


def test_a_saved_reference_is_read_as_it_was_written(tmp_path):
    stored_reference(tmp_path / "r.npz")
    found = reference(str(tmp_path / "r.npz"), extractor("pixels"), 32)
    assert torch.equal(found.mean, torch.from_numpy(MU)) and found.features.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays | {"mu": arrays["mu"] + 1e-9},
        lambda arrays: arrays | {"features": arrays["features"].astype(np.float64)},
        lambda arrays: arrays | {"size": np.array(0)},
        lambda arrays: {name: value for name, value in arrays.items() if name != "features"},
        lambda arrays: {name: value for name, value in arrays.items() if name != "extractor"},
        lambda arrays: {name: value for name, value in arrays.items() if name != "sha256"},  # of an earlier version
    ],
)
def test_a_saved_reference_that_was_changed_is_an_error(tmp_path, change):
    np.savez(tmp_path / "r.npz", **change(stored_reference(tmp_path / "r.npz")))
    with pytest.raises(
        ValueError, match=r"r\.npz must be .*\((its checksum does not match|the array \"sha256\" with its)"
    ):
        reference(str(tmp_path / "r.npz"), extractor("pixels"), 32)
