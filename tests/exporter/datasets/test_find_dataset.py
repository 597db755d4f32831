"""Finding images: each layout, what is detected, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pcexport.cli import main
from pcexport.datasets import LAYOUTS, Dataset, ImageRef, find_dataset
from pcexport.datasets.files import split_normals
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import load_masks, write_mask


def touch(root: Path, *names: str) -> None:
    """Files with an image's name; finding them does not open them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def normal_names(dataset: Dataset) -> list[str]:
    return [image.path.relative_to(dataset.root).as_posix() for image in dataset.normal]


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "bottle"
    touch(root, "train/good/001.png", "train/good/000.png", "train/good/notes.txt", "train/bad/000.png")
    touch(root, "test/good/000.png", "test/crack/000.png", "test/crack/001.png", "test/readme.txt")
    touch(root, "ground_truth/crack/000_mask.png")
    return root


@pytest.fixture
def mtd(tmp_path: Path) -> Path:
    root = tmp_path / "tiles"
    for name in ("a", "b", "c"):
        touch(root, f"MT_Free/Imgs/{name}.jpg", f"MT_Free/Imgs/{name}.png")
    touch(root, "MT_Crack/Imgs/x.jpg", "MT_Blowhole/Imgs/y.jpg", "MT_Notes.txt")
    write_mask(root / "MT_Crack/Imgs/x.png", (8, 8), (2, 2, 3, 3))
    return root


def write_split(root: Path, train: list[str], test: list[str]) -> None:
    (root / "split.json").write_text(json.dumps({"train_good": train, "test_good": test}), encoding="utf-8")


def test_mvtec_reads_train_good_in_order_and_labels_the_test_folders(mvtec: Path) -> None:
    dataset = find_dataset(str(mvtec))
    assert (dataset.name, dataset.layout) == ("bottle", "mvtec")
    assert normal_names(dataset) == ["train/good/000.png", "train/good/001.png"]
    found = [(t.path.relative_to(mvtec).as_posix(), t.defect, t.is_defective) for t in dataset.test]
    assert found == [
        ("test/crack/000.png", "crack", True),
        ("test/crack/001.png", "crack", True),
        ("test/good/000.png", None, False),
    ]


def test_mvtec_masks_are_attached_where_they_exist(mvtec: Path) -> None:
    masks = {t.path.relative_to(mvtec).as_posix(): t.masks for t in find_dataset(str(mvtec)).test}
    assert masks["test/crack/000.png"] == (ImageRef(mvtec / "ground_truth/crack/000_mask.png"),)
    assert masks["test/crack/001.png"] == ()
    assert masks["test/good/000.png"] == ()


def test_mvtec_without_a_test_folder_has_no_test_images(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/000.png")
    dataset = find_dataset(str(tmp_path))
    assert (dataset.layout, len(dataset.normal), dataset.test) == ("mvtec", 1, ())


def test_mtd_with_a_split_honours_its_order_and_keeps_the_rest_out(mtd: Path) -> None:
    write_split(mtd, ["c.jpg", "a.jpg"], ["b.jpg"])
    dataset = find_dataset(str(mtd))
    assert dataset.layout == "mtd"
    assert [image.name for image in dataset.normal] == ["c.jpg", "a.jpg"]
    assert [(t.path.name, t.defect) for t in dataset.test] == [
        ("b.jpg", None),
        ("y.jpg", "MT_Blowhole"),
        ("x.jpg", "MT_Crack"),
    ]


def test_mtd_without_a_split_builds_from_every_free_image(mtd: Path) -> None:
    dataset = find_dataset(str(mtd))
    assert [image.name for image in dataset.normal] == ["a.jpg", "b.jpg", "c.jpg"]
    assert all(t.is_defective for t in dataset.test) and len(dataset.test) == 2


def test_mtd_masks_are_not_images_and_belong_to_their_defect(mtd: Path) -> None:
    masks = {t.path.name: t.masks for t in find_dataset(str(mtd)).test}
    assert masks == {"x.jpg": (ImageRef(mtd / "MT_Crack/Imgs/x.png"),), "y.jpg": ()}


def test_mtd_split_with_names_that_are_missing_is_refused(mtd: Path) -> None:
    write_split(mtd, ["a.jpg", "gone.jpg"], ["lost.jpg"])
    with pytest.raises(BuildError, match=r"names 2 images that MT_Free/Imgs lacks, the first 'gone\.jpg'"):
        find_dataset(str(mtd))


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"train_good": ["a.jpg"]}', '{"train_good": 1, "test_good": []}', "[]"]
)
def test_mtd_split_that_is_no_split_is_refused(mtd: Path, text: str) -> None:
    (mtd / "split.json").write_text(text, encoding="utf-8")
    with pytest.raises(BuildError, match=r"split\.json is not a split"):
        find_dataset(str(mtd))


def test_flat_takes_images_of_every_known_kind_directly_in_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "c.tiff", "notes.txt", "sub/d.png")
    dataset = find_dataset(str(tmp_path))
    assert (dataset.layout, dataset.test) == ("flat", ())
    assert normal_names(dataset) == ["a.png", "b.JPG", "c.tiff"]


def test_glob_is_sorted_takes_files_with_image_names_only_and_knows_its_root(tmp_path: Path) -> None:
    touch(tmp_path, "cam/x2.png", "cam/x1.png", "cam/y.png", "cam/x.txt")
    (tmp_path / "cam" / "x_folder.png").mkdir()
    dataset = find_dataset(str(tmp_path / "cam" / "x*"))
    assert (dataset.name, dataset.layout, dataset.root) == ("cam", "flat", tmp_path / "cam")
    assert normal_names(dataset) == ["x1.png", "x2.png"]


def test_recursive_glob_reaches_all_depths(tmp_path: Path) -> None:
    touch(tmp_path, "cam/a.png", "cam/1/b.png", "cam/1/2/c.png")
    dataset = find_dataset(str(tmp_path / "cam" / "**" / "*.png"))
    assert normal_names(dataset) == ["1/2/c.png", "1/b.png", "a.png"]
    assert dataset.name == "cam"


def test_relative_glob_is_read_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "here/a.png", "here/b.png")
    monkeypatch.chdir(tmp_path / "here")
    dataset = find_dataset("*.png")
    assert (dataset.name, [image.name for image in dataset.normal]) == ("here", ["a.png", "b.png"])


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "lot[7]/a.png", "lot7/b.png")
    assert [image.name for image in find_dataset(str(tmp_path / "lot[7]")).normal] == ["a.png"]


def test_a_glob_without_a_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"\*\.png holds no normal images"):
        find_dataset(str(tmp_path / "*.png"))


def test_a_glob_is_no_other_layout(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"is a glob, which is layout 'flat', not 'mvtec'"):
        find_dataset(str(tmp_path / "*.png"), "mvtec")


def test_detection_prefers_the_layout_with_folders_over_loose_images(mvtec: Path, mtd: Path) -> None:
    touch(mvtec, "preview.png")
    touch(mtd, "preview.png")
    assert find_dataset(str(mvtec)).layout == "mvtec"
    assert find_dataset(str(mtd)).layout == "mtd"


def test_a_given_layout_overrides_detection(mvtec: Path) -> None:
    touch(mvtec, "preview.png")
    dataset = find_dataset(str(mvtec), "flat")
    assert (dataset.layout, normal_names(dataset), dataset.test) == ("flat", ["preview.png"], ())


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"visa"}))
def test_a_given_layout_without_its_images_is_refused(tmp_path: Path, layout: str) -> None:
    touch(tmp_path, "somewhere/else/a.png")
    with pytest.raises(
        BuildError, match=rf"no normal images where layout {layout} has them .*Expected .*\.png"
    ):
        find_dataset(str(tmp_path), layout)


def test_two_layouts_in_one_folder_are_an_error_that_names_them(mvtec: Path) -> None:
    touch(mvtec, "MT_Free/Imgs/a.jpg", "train/ok/000.png")
    with pytest.raises(BuildError, match=r"looks like 3 layouts: mvtec, mtd, btad\. .*--layout"):
        find_dataset(str(mvtec))
    assert find_dataset(str(mvtec), "mtd").layout == "mtd"


def test_every_layout_describes_itself() -> None:
    for name, layout in LAYOUTS.items():
        assert name == layout.name
        assert layout.title and layout.normals
        assert all(0 < len(line) <= 100 for line in layout.expects.splitlines())


def test_no_layout_matches_an_empty_folder(tmp_path: Path) -> None:
    assert not any(layout.matches(tmp_path) for layout in LAYOUTS.values())


def test_listing_the_layouts_loads_nothing_heavy() -> None:
    code = (
        "import sys, pcexport.config; from pcexport.datasets import LAYOUTS; assert LAYOUTS; "
        "print(*{'numpy', 'cv2', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_names_with_braces_are_reported_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "lot{first}"
    touch(root, "train/good/000.png", "ground_truth/a/{n}.png")
    with pytest.raises(BuildError, match=r"1 masks in .*lot.* belong to no image, the first a/\{n\}\.png"):
        find_dataset(str(root))


@pytest.mark.parametrize("count, held_back", [(1, []), (4, []), (5, [5]), (14, [5, 10])])
def test_every_fifth_normal_item_is_for_the_test(count: int, held_back: list[int]) -> None:
    build, test = split_normals(range(1, count + 1))
    assert test == held_back
    assert sorted(build + test) == list(range(1, count + 1))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no known layout \(it holds: nothing\)"):
        find_dataset(str(tmp_path))


def test_an_unknown_layout_lists_what_was_seen(tmp_path: Path) -> None:
    touch(tmp_path, "train/ok/a.png", "defects/b.png", "list.csv")
    with pytest.raises(BuildError, match=r"it holds: defects, list\.csv, train\)\. Expected train/good/"):
        find_dataset(str(tmp_path))


@pytest.mark.parametrize(
    "name, message", [("gone", "There is no folder .*gone"), ("a.png", "a.png is a file")]
)
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, name: str, message: str) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(BuildError, match=message):
        find_dataset(str(tmp_path / name))


def test_hidden_files_are_not_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "._a.png")
    assert normal_names(find_dataset(str(tmp_path))) == ["a.png"]


def test_a_split_that_names_an_image_twice_is_refused(mtd: Path) -> None:
    name = next((mtd / "MT_Free" / "Imgs").glob("*.jpg")).name
    split = {"train_good": [name], "test_good": [name]}
    (mtd / "split.json").write_text(json.dumps(split), encoding="utf-8")
    with pytest.raises(BuildError, match="names 1 images twice"):
        find_dataset(str(mtd))


@pytest.mark.realdata
def test_magnetic_tiles_split_as_published(realdata_dir: Path) -> None:
    if not (realdata_dir / "mtd").is_dir():
        pytest.skip(f"no mtd folder in {realdata_dir}")
    dataset = find_dataset(str(realdata_dir / "mtd"))
    defective = [t for t in dataset.test if t.is_defective]
    assert (dataset.layout, len(dataset.normal)) == ("mtd", 761)
    assert (len(dataset.test) - len(defective), len(defective)) == (191, 392)
    assert not set(dataset.normal) & {t.ref for t in dataset.test}
    # Four of the published masks mark nothing.
    (remark,) = dataset.remarks
    assert remark.startswith("4 defective images have a mask that marks nothing")
    assert sum(not t.masks for t in defective) == 4
    assert sum(mask is not None for mask in load_masks(dataset)) == 388


@pytest.mark.realdata
def test_hazelnut_is_mvtec_with_masks(realdata_dir: Path) -> None:
    if not (realdata_dir / "hazelnut_reduced").is_dir():
        pytest.skip(f"no hazelnut_reduced folder in {realdata_dir}")
    dataset = find_dataset(str(realdata_dir / "hazelnut_reduced"))
    assert (dataset.layout, len(dataset.normal)) == ("mvtec", 50)
    defective = [t for t in dataset.test if t.is_defective]
    assert defective and all(t.masks for t in defective)
    assert sum(mask is not None for mask in load_masks(dataset)) == len(defective)
    assert len({t.defect for t in defective}) * 2 == len(defective)


def test_masks_beside_plain_images_are_not_taken_for_normal_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b.jpg", "b.png", "c.jpg")
    message = r"2 normal images have another file of the same name .* the first .*a\.jpg and a\.png\."
    for data in (tmp_path, tmp_path / "*"):
        with pytest.raises(BuildError, match=message):
            find_dataset(str(data))
    assert normal_names(find_dataset(str(tmp_path / "*.jpg"))) == ["a.jpg", "b.jpg", "c.jpg"]


def test_images_of_one_name_in_two_folders_are_two_images(tmp_path: Path) -> None:
    touch(tmp_path, "monday/a.jpg", "tuesday/a.png")
    assert len(find_dataset(str(tmp_path / "*/*")).normal) == 2


@pytest.mark.parametrize(
    "command", [["build", "-o", "x.pcbundle"], ["calibrate", "x.pcbundle"], ["eval", "x.pcbundle"]]
)
def test_a_glob_without_quotes_is_said_to_need_them(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "good/a.png", "good/b.png", "good/c.png"]) == 2
    assert "into quotes" in capsys.readouterr().err
