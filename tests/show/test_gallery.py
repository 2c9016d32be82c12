"""Names, order, thumbnails, the contact sheet, files to take away, and the choice of k, without a
label anywhere.
"""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fixtures import Samples
from PIL import Image
from pycocotools.coco import COCO

from mdlib.core.files import StoreError
from mdlib.core.label_map import read_label_map
from mdlib.core.mask import Mask, Masks
from mdlib.data import Sample, open_dataset
from mdlib.method import pseudo_labels
from mdlib.show import gallery

# ---------------------------------------------------------------- names


@pytest.mark.parametrize("text", ["3: cat\n0: räven\n", '{"3": "cat", "0": "räven"}'])
def test_names_come_from_yaml_and_json(tmp_path, text):
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert gallery.read_names(tmp_path / "names", k=4) == {3: "cat", 0: "räven"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("4: cat", r"names cluster 4; this run has the clusters 0\.\.3"),
        ("-1: cat", "names cluster -1"),
        ("cat: 3", "names cluster 'cat'"),
        ("1.5: cat", "names cluster 1.5"),
        ("true: cat", "names cluster True"),
        ("1: ", "the name of cluster 1 must be text, got None"),
        ("1: yes", "must be text, got True"),
        ('1: " "', "must be text"),
        ('{1: cat, "1": dog}', "names cluster 1 twice"),
        ("- cat\n- dog\n", "must hold cluster numbers and names"),
        ("", "must hold cluster numbers and names"),
        ("{1: [", "neither YAML nor JSON"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, text, why):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(StoreError, match=rf"names\.yaml.*{why}"):
        gallery.read_names(tmp_path / "names.yaml", k=4)


def test_a_missing_file_of_names_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"absent\.yaml is missing"):
        gallery.read_names(tmp_path / "absent.yaml", k=4)


# ---------------------------------------------------------------- order


def test_large_clusters_come_first_and_near_masks_before_far_ones():
    centres = np.array([[0.0, 0], [10, 0], [0, 10], [50, 50]], np.float32)
    features = np.array([[0, 2], [10, 1], [0, 1], [0, 0.5], [10, 0], [0, 9]], np.float32)
    found = gallery.group(features, centres, np.array([0, 1, 0, 0, 1, 2]), {1: "dog"})
    assert [(c.number, c.name, c.members.tolist()) for c in found] == [
        (0, "cluster 0", [3, 2, 0]),
        (1, "dog", [4, 1]),
        (2, "cluster 2", [5]),
    ]


# ---------------------------------------------------------------- the choice of k


def silhouette_spec(features, assigned):
    """Mask by mask, from the definition; a mask that is alone in its cluster has 0."""
    scores = []
    for i, own in enumerate(assigned):
        means = {}
        for c in set(assigned.tolist()):
            others = [j for j in range(len(features)) if assigned[j] == c and j != i]
            means[c] = (
                np.mean([np.linalg.norm(features[i] - features[j]) for j in others])
                if others
                else None
            )
        a, b = means.pop(own), min(means.values())
        scores.append(0.0 if a is None else (b - a) / max(a, b))
    return np.mean(scores)


def test_the_silhouette_is_its_definition(rng):
    features = rng.normal(size=(12, 3))
    assigned = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3])
    assert gallery.silhouette(features, assigned, seed=0) == pytest.approx(
        silhouette_spec(features, assigned)
    )


def test_the_silhouette_of_many_masks_is_taken_from_some(rng, monkeypatch):
    monkeypatch.setattr(gallery, "SAMPLE", 60)
    features, assigned = rng.normal(size=(300, 2)), np.repeat([0, 1], 150)
    features[assigned == 1] += 20
    assert gallery.silhouette(features, assigned, seed=0) > 0.85
    assert abs(gallery.silhouette(features, rng.permutation(assigned), seed=0)) < 0.1


def test_the_silhouette_says_nothing_of_one_cluster_or_of_single_masks(rng):
    features = rng.normal(size=(4, 2))
    assert (
        gallery.silhouette(features, np.zeros(4, int), seed=0)
        == 0
        == gallery.silhouette(features, np.arange(4), seed=0)
    )


def test_the_curve_has_its_top_at_the_true_number_of_heaps(rng):
    corners = np.array([[0, 0], [8, 0], [0, 8], [8, 8]])
    features = np.concatenate([corner + rng.normal(size=(30, 2)) for corner in corners])
    rows = gallery.try_k(features, [2, 4, 12], runs=3, seed=5, batch_size=200)
    assert [row["k"] for row in rows] == [2, 2, 2, 4, 4, 4, 12, 12, 12]
    mean = {
        key: [np.mean([r[key] for r in rows if r["k"] == k]) for k in (2, 4, 12)]
        for key in ("inertia", "silhouette")
    }
    assert np.argmax(mean["silhouette"]) == 1
    assert mean["inertia"][0] > mean["inertia"][1] > mean["inertia"][2]
    # within the heaps / all: variances of both axes
    assert mean["inertia"][1] == pytest.approx(2 / (2 * 4**2 + 2), rel=0.3)


@pytest.mark.parametrize("ks", [[2, 10], [2, 11], [1, 3]])
def test_more_clusters_than_masks_are_refused(rng, ks):
    with pytest.raises(
        ValueError, match="at least 2 and less than the number of masks, 10; asked for"
    ):
        gallery.try_k(rng.normal(size=(10, 2)), ks, runs=1, seed=0, batch_size=10)


# ---------------------------------------------------------------- pictures


def test_a_thumbnail_shows_the_mask_in_its_colours_and_fades_the_rest():
    image = np.full((40, 100, 3), (0, 0, 200), np.uint8)
    mask = np.zeros((40, 100), bool)
    mask[10:30, 60:100] = True  # twice as wide as high, at the border of the picture
    image[mask] = (200, 0, 0)
    shown = gallery.thumbnail(image, mask, side=64)
    assert shown.shape == (64, 64, 3) and shown.dtype == np.uint8
    reds = (shown[..., 0] > 150) & (shown[..., 2] < 60)  # the mask and its orange border
    rows, columns = np.flatnonzero(reds.any(1)), np.flatnonzero(reds.any(0))
    assert 1.6 < (np.ptp(columns) + 1) / (np.ptp(rows) + 1) < 2.4  # it keeps its shape
    assert abs(rows.mean() - 31.5) < 2  # it stands in the middle
    assert ((shown[reds] == (200, 0, 0)).all(-1)).mean() > 0.6
    blues = (shown[..., 2] > 200) & (shown[..., 0] < 180)
    assert blues.any() and (shown[blues][:, 0] > 120).all()  # blue is there, but pale
    assert (shown[0] == round(gallery.PAPER * 255)).all()


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 1, 300), (0, 0, 400, 1), (0, 0, 400, 300)])
def test_masks_of_any_shape_have_thumbnails(rng, box):
    x0, y0, x1, y1 = box
    mask = np.zeros((300, 400), bool)
    mask[y0:y1, x0:x1] = True
    assert gallery.thumbnail(
        rng.integers(0, 256, (300, 400, 3), dtype=np.uint8), mask, side=32
    ).shape == (32, 32, 3)


class Pictures(Samples):
    """Samples that come from files."""

    def file_name(self, i):
        return ("a.jpg", "b/é.png", "c.jpg")[i]


@pytest.fixture
def pictures(rng):
    return Pictures(
        Sample(name, rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8))
        for i, name in enumerate(("a", "b__é", "c"))
    )


@pytest.fixture
def masks():
    """Two masks in the first picture, none in the second, one in the third."""
    found = []
    for name, height, top in (("a", 20, 0), ("a", 20, 10), ("c", 22, 5)):
        pixels = np.zeros((height, 30), bool)
        pixels[top : top + 8, 4:12] = True
        found.append(Mask.from_pixels(pixels, image_id=name, score=0.5))
    return Masks(found)


def test_each_picture_is_opened_once(pictures, masks):
    thumbs = gallery.thumbnails(pictures, masks, [2, 0, 1], side=16)
    assert sorted(thumbs) == [0, 1, 2] and pictures.asked == {("image", 0): 1, ("image", 2): 1}
    expected = gallery.thumbnail(pictures.image(0), masks[1].pixels(), side=16)
    np.testing.assert_array_equal(thumbs[1], expected)


class Page(HTMLParser):
    """What a browser would see: tags that are closed in order, sources, link targets and text."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.images, self.links, self.ids, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.images += [attrs["src"]] if tag == "img" else []
        self.links += [attrs["href"]] if "href" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data if self.stack and self.stack[-1] != "style" else ""


def test_the_contact_sheet_is_whole_in_itself(rng):
    thumbs = {i: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in (0, 1, 3)}
    clusters = [
        gallery.Cluster(7, "cats & <dogs>", np.array([3, 0, 2])),
        gallery.Cluster(1, "cluster 1", np.array([1])),
    ]
    text = gallery.contact_sheet(
        clusters, thumbs, ["a.jpg", 'b "x".jpg', "c.jpg", "é/d.jpg"], title="T", note="N {x}"
    )
    page = Page(text)
    assert not page.stack and page.links == ["#c7", "#c1"] and page.ids == ["c7", "c1"]
    assert (
        "cats & <dogs>" in page.text
        and "cluster 7, 3 masks" in page.text
        and page.text.count("cluster 1") == 2
        and "1 mask" in page.text
        and "é/d.jpg" not in page.text
        and 'title="é/d.jpg"' in text
        and "d.jpg" in page.text
        and "N {x}" in page.text
    )
    assert "c.jpg" not in page.text  # no thumbnail, no cell
    assert len(page.images) == 3 and not re.search(
        r"(src|href)=\"(?!data:|#)|url\(|<script|<link", text
    )
    sizes = [
        Image.open(
            io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))
        ).size
        for source in page.images
    ]
    assert sizes == [(16, 16)] * 3
    assert 'name="viewport"' in text


# ---------------------------------------------------------------- files to take away


def export(folder, pictures, masks, assigned=(2, 0, 2), *, k=3, names=None):
    gallery.export(
        folder,
        pictures,
        masks.with_clusters(assigned),
        names=names or {},
        k=k,
        draw=lambda image, found: pseudo_labels.clustered_map(found, image_hw=image.shape[:2]),
    )


def test_the_masks_are_coco(tmp_path, pictures, masks):
    export(tmp_path, pictures, masks, names={2: "katt"})
    coco = COCO(tmp_path / "masks.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        "a.jpg",
        "b/é.png",
        "c.jpg",
    ]
    assert [(c["id"], c["name"]) for c in coco.loadCats(coco.getCatIds())] == [
        (1, "cluster 0"),
        (2, "cluster 1"),
        (3, "katt"),
    ]
    assert coco.getAnnIds(imgIds=[2]) == []
    for annotation, mask, category in zip(
        coco.loadAnns(coco.getAnnIds()), masks, (3, 1, 3), strict=True
    ):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask.pixels())
        assert (
            annotation["category_id"] == category
            and annotation["area"] == 64
            and annotation["bbox"][2:] == [8, 8]
        )
    images = json.loads((tmp_path / "masks.json").read_text())["images"]
    assert all((tmp_path / image["label_map"]).is_file() for image in images)


def test_the_maps_hold_one_plus_the_cluster_and_a_file_names_the_values(tmp_path, pictures, masks):
    export(tmp_path, pictures, masks, names={0: "katt", 2: "katt"})
    first, second = (read_label_map(tmp_path / "maps" / f"{name}.png") for name in ("a", "b__é"))
    assert (
        (first[:8, 4:12] == 3).all()
        and (first[10:18, 4:12] == 1).all()
        and (first > 0).sum() == 128
    )
    assert second.shape == (21, 30) and not second.any()
    names = (tmp_path / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert names == ["background", "katt", "cluster 1", "katt (cluster 2)"]


@pytest.mark.parametrize(
    ("given", "titles"),
    [
        (["a\nb", "a b", "A\u2028B"], ["a b", "a b (cluster 1)", "A B (cluster 2)"]),
        (["background", "x", "x"], ["background (cluster 0)", "x", "x (cluster 2)"]),
        (["x", "x", "x (cluster 1)"], ["x", "x (cluster 1)", "x (cluster 1) (cluster 2)"]),
        (["cluster 1", "cluster 1"], ["cluster 1", "cluster 1 (cluster 1)"]),
        (["$x$", "<b>|", "%{}_"], ["$x$", "<b>|", "%{}_"]),
    ],
)
def test_each_name_is_one_line_and_each_line_another(given, titles):
    assert gallery.unique_titles(given) == titles


def test_the_export_opens_again_as_a_folder_with_label_maps(tmp_path, pictures, masks):
    names = {0: "a\r\nb", 1: "a b", 2: "Background"}
    export(tmp_path, pictures, masks, names=names)
    (tmp_path / "images").mkdir()
    for i, image_id in enumerate(pictures.ids):
        Image.fromarray(pictures.image(i)).save(tmp_path / "images" / f"{image_id}.png")
    (tmp_path / "maps").rename(tmp_path / "masks")
    again = open_dataset("folder", root=tmp_path, split="train")
    assert again.classes == ("background", "a b", "a b (cluster 1)", "Background (cluster 2)")
    assert again.ids == pictures.ids and set(np.unique(again.semantic(0))) == {0, 1, 3}
    coco = json.loads((tmp_path / "masks.json").read_text(encoding="utf-8"))
    assert tuple(c["name"] for c in coco["categories"]) == again.classes[1:]
    assert coco["info"] and coco["licenses"] == []  # readers before pycocotools 2.0.11 need both


@pytest.mark.parametrize("k", [254, 300])
def test_maps_hold_as_many_clusters_as_there_are(tmp_path, pictures, masks, k):
    export(tmp_path, pictures, masks, (k - 1, 0, 1), k=k)
    assert read_label_map(tmp_path / "maps" / "a.png").max() == k
