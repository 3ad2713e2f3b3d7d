"""Statistics of other programs: the same distance as scipy's, or an error in one sentence."""

import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from eval.features.extractors import extractor
from eval.metrics.fid import FrechetTo
from eval.metrics.reference import Reference, reference, save
from tests.commands import eval_main as main

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


@pytest.mark.slow
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


def with_eigenvalue(value):
    """SIGMA with its smallest eigenvalue replaced by `value` times the largest."""
    values, vectors = np.linalg.eigh(SIGMA)
    values[0] = value * values[-1]
    return (vectors * values) @ vectors.T


def two_sigmas(file):
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's, of the repeated name
        for name, array in (("mu", MU), ("sigma", SIGMA), ("sigma", 2 * SIGMA)):
            with archive.open(f"{name}.npy", "w") as entry:
                np.save(entry, array)


def broken():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    nan, asymmetric = np.full(WIDTH, np.nan), SIGMA.copy()
    asymmetric[0, 1] += 1
    tilted, correlated = SIGMA.copy(), SIGMA.copy()
    tilted[0, 1] += 1e-4 * SIGMA.max()
    correlated[0, 1] = correlated[1, 0] = 2 * np.sqrt(SIGMA[0, 0] * SIGMA[1, 1])
    return {
        "samples only": (lambda file: np.savez(file, np.zeros((4, 8, 8, 3), np.uint8)), "mu"),
        "nan": (lambda file: np.savez(file, mu=nan, sigma=SIGMA), "mu in .* must be finite"),
        "inf": (lambda file: np.savez(file, mu=MU, sigma=SIGMA * np.inf), "sigma in .* must be finite"),
        "nan features": (lambda file: np.savez(file, mu=MU, sigma=SIGMA, features=nan[None]), "features in .* finite"),
        "features": (lambda file: np.savez(file, mu=MU, sigma=SIGMA, features=np.zeros((4, 3))), r"shape \(N, 192\)"),
        "asymmetric": (lambda file: np.savez(file, mu=MU, sigma=asymmetric), "sigma in .* must be symmetric"),
        "slightly asymmetric": (lambda file: np.savez(file, mu=MU, sigma=tilted), "sigma in .* must be symmetric"),
        "negative": (lambda file: np.savez(file, mu=MU, sigma=-SIGMA), "sigma in .* must have no negative eigenvalues"),
        "one negative eigenvalue": (
            lambda file: np.savez(file, mu=MU, sigma=with_eigenvalue(-1e-3)),
            "sigma in .* must have no negative eigenvalues",
        ),
        "variance and correlation above 1": (
            lambda file: np.savez(file, mu=MU, sigma=correlated),
            "sigma in .* must have no negative eigenvalues",
        ),
        "complex sigma": (
            lambda file: np.savez(file, mu=MU, sigma=SIGMA + 1j),
            "sigma must hold real numbers, got complex",
        ),
        "complex mu": (lambda file: np.savez(file, mu=MU + 0j, sigma=SIGMA), "mu must hold real numbers, got complex"),
        "complex features": (
            lambda file: np.savez(file, mu=MU, sigma=SIGMA, features=FEATURES + 0j),
            "features must hold real numbers, got complex",
        ),
        "flags": (lambda file: np.savez(file, mu=MU > 0, sigma=SIGMA), "mu must hold real numbers, got bool"),
        "dates": (
            lambda file: np.savez(file, mu=MU.astype("M8[s]"), sigma=SIGMA),
            "mu must hold real numbers, got datetime",
        ),
        "huge mu": (lambda file: np.savez(file, mu=MU + 1e200, sigma=SIGMA), "mu in .* must be at most 1e"),
        "huge sigma": (lambda file: np.savez(file, mu=MU, sigma=SIGMA * 1e300), "sigma in .* must be at most 1e"),
        "features of other images": (
            lambda file: np.savez(file, mu=MU, sigma=SIGMA, features=FEATURES + 5),
            "features in .* must be those of mu and sigma",
        ),
        "two arrays of a name": (two_sigmas, "it must have one array sigma, got 2"),
        "no dimensions": (lambda file: np.savez(file, mu=np.zeros(0), sigma=np.zeros((0, 0))), r"shapes \(D,\)"),
        "a number": (lambda file: np.savez(file, mu=1.0, sigma=1.0), r"shapes \(D,\)"),
        "another width": (lambda file: np.savez(file, mu=MU[:-1], sigma=SIGMA), r"shapes \(D,\)"),
        "one sample": (lambda file: np.savez(file, mu=MU, sigma=SIGMA, features=FEATURES[:1]), "at least two rows"),
        "no samples": (lambda file: np.savez(file, mu=MU, sigma=SIGMA, features=FEATURES[:0]), "at least two rows"),
        "other keys": (lambda file: np.savez(file, mean=MU, cov=SIGMA), ""),
        "a large size": (
            lambda file: np.savez(file, mu=MU, sigma=SIGMA, size=12),
            "made from images of 12 x 12 pixels",
        ),
        "a list of sizes": (lambda file: np.savez(file, mu=MU, sigma=SIGMA, size=[8, 8]), ""),
        "shapes": (lambda file: np.savez(file, mu=MU[None], sigma=SIGMA), r"shapes \(D,\) and \(D, D\)"),
        "empty": (lambda file: file.write(b""), ""),
        "html": (lambda file: file.write(b"<html>404</html>"), ""),
        "pickle": (lambda file: pickle.dump({"fid": {"mu": MU, "sigma": Trap()}}, file), ""),  # EDM2
        "objects": (lambda file: np.savez(file, mu=np.array([Trap()] * WIDTH), sigma=SIGMA, allow_pickle=True), ""),
        "array": (lambda file: np.save(file, MU), ""),
        "words": (lambda file: np.savez(file, mu=np.array(["a"] * WIDTH), sigma=SIGMA), ""),
    }


@pytest.mark.parametrize("case", broken())
@pytest.mark.first_is_quick
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


@pytest.mark.parametrize("images", [10, 50, 150])
def test_a_covariance_without_full_rank_in_single_precision_is_accepted(tmp_path, images):
    """Fewer images than dimensions: some eigenvalues are negative by rounding; they count as zero."""
    sigma = np.cov(FEATURES[:images], rowvar=False)
    np.savez(tmp_path / "a.npz", mu=MU.astype(np.float32), sigma=sigma.astype(np.float32))
    assert np.linalg.eigvalsh(sigma.astype(np.float32).astype(np.float64)).min() < 0
    np.savez(tmp_path / "b.npz", mu=MU, sigma=sigma)
    assert distance(tmp_path / "a.npz") == pytest.approx(distance(tmp_path / "b.npz"), rel=1e-3)


def test_statistics_of_another_type_or_order_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(WIDTH, np.int64), sigma=np.eye(WIDTH, dtype=np.float16))
    assert distance(tmp_path / "a.npz") > 0
    np.savez(tmp_path / "b.npz", mu=MU, sigma=SIGMA, features=FEATURES.astype(">f4"))
    assert reference(str(tmp_path / "b.npz"), extractor("pixels")).features.shape == FEATURES.shape


def test_the_reference_of_another_extractor_is_refused_with_both_widths(tmp_path, capsys):
    for i in range(2):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    np.savez(tmp_path / "a.npz", mu=np.zeros(7), sigma=np.eye(7))
    assert main(["images", str(tmp_path), str(tmp_path / "a.npz"), "--features", "pixels"]) == 2
    assert 'a.npz" has 7 dimensions and the features "pixels" have 192' in capsys.readouterr().err


COVARIANCES = {
    "asymmetric": (torch.eye(3) + torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0.0]]), "symmetric"),
    "negative": (torch.diag(torch.tensor([1.0, 1.0, -0.01])), "no negative eigenvalues"),
    "nan": (torch.full((3, 3), torch.nan), "finite"),
    "complex": (torch.eye(3, dtype=torch.complex128), "real"),
    "wide": (torch.eye(4), r"shapes \(D,\) and \(D, D\)"),
}


@pytest.mark.parametrize("case", COVARIANCES)
def test_a_distance_to_what_is_no_covariance_is_refused(case):
    covariance, message = COVARIANCES[case]
    with pytest.raises(ValueError, match=f"covariance must .*{message}|must have the {message}"):
        FrechetTo(torch.zeros(3), covariance)


def test_a_distance_from_what_is_no_covariance_is_refused():
    bad = torch.diag(torch.tensor([1.0, 1.0, -0.5]))
    for target in (torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0]))):
        for mean in (0.0, 5.0):
            with pytest.raises(ValueError, match=r"must have no negative eigenvalues"):
                FrechetTo(torch.zeros(3), target).distance(torch.full((3,), mean), bad)


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
        lambda arrays: arrays | {"other": arrays["mu"]},  # nothing limits its size
        lambda arrays: {name: value for name, value in arrays.items() if name != "sha256"},  # of an earlier version
    ],
)
def test_a_saved_reference_that_was_changed_is_an_error(tmp_path, change):
    np.savez(tmp_path / "r.npz", **change(stored_reference(tmp_path / "r.npz")))
    with pytest.raises(
        ValueError,
        match=r"r\.npz must be .*\((its checksum does not match|it has the array other|the array \"sha256\" with its)",
    ):
        reference(str(tmp_path / "r.npz"), extractor("pixels"), 32)
