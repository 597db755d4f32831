"""Two plain folders, good and bad: the quickest way to a labelled set of one's own."""

from pathlib import Path

from pcexport.datasets.files import MaskFolder, folders_in, images_in, name_of, refs, require_one_suffix
from pcexport.datasets.types import Dataset, TestImage
from pcexport.errors import BuildError

_GOOD = ("good", "ok", "normal")
_BAD = ("bad", "ko", "anomalous", "defective")
_TEST_GOOD = tuple(f"test_{name}" for name in _GOOD)
_MASKS = ("masks", "ground_truth")


class GoodBad:
    """Folders named by the label of what they hold.

    Everything in `good/` is for the build: a share that was held back in silence would be missing there.
    Normal images to test on are put into `test_good/` by whoever knows which are alike.
    """

    name = "good_bad"
    title = "good/ and bad/ folders"
    expects = """\
good/*.png                        normal images, all for the build (or ok/, normal/)
test_good/*.png                   normal test images; optional (or test_ok/, test_normal/)
bad/*.png, bad/CLASS/*.png        defective test images (or ko/, anomalous/, defective/)
masks/STEM.png, masks/CLASS/STEM.png   their masks; optional (or ground_truth/; STEM_mask)"""
    normals = "good/, ok/ or normal/"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        # A lone good/ may be part of some other layout, such as the test folder of MVTec AD.
        return bool(_present(root, _GOOD)) and bool(_present(root, _BAD + _TEST_GOOD))

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        good, test_good, bad = (_only(root, names) for names in (_GOOD, _TEST_GOOD, _BAD))
        folder = _only(root, _MASKS)
        masks = MaskFolder(root / _MASKS[0] if folder is None else folder)
        test = (
            [TestImage(path, None) for path in require_one_suffix(images_in(test_good))] if test_good else []
        )
        if bad:
            for where in (bad, *folders_in(bad)):
                test += [_defective(path, bad, masks) for path in images_in(where)]
        masks.require_all_taken(f"{bad.name if bad else _BAD[0]}/, in folders of the same names")
        normal = refs(require_one_suffix(images_in(good))) if good else ()
        return Dataset(name_of(root), self.name, root, normal, tuple(test))


def _defective(path: Path, bad: Path, masks: MaskFolder) -> TestImage:
    name = path.relative_to(bad).with_suffix("").as_posix()
    # As in MVTec AD, masks may also lie in a folder called like that of the images.
    names = [place + name + ending for place in ("", f"{bad.name}/") for ending in ("", "_mask")]
    return TestImage(path, path.parent.name, masks.take(*names))


def _present(root: Path, names: tuple[str, ...]) -> list[Path]:
    return [root / name for name in names if (root / name).is_dir()]


def _only(root: Path, names: tuple[str, ...]) -> Path | None:
    """The one folder of these names, if there is any."""
    found = _present(root, names)
    if len(found) > 1:
        raise BuildError(
            f"{root} holds {' and '.join(f'{path.name}/' for path in found)}, which mean the same. Expected "
            "one of them; put the images into one folder."
        )
    return found[0] if found else None
