"""Where VOC and COCO are published, on which terms, and which mirrors hold the same files.

Checksums are those that torchvision lists for the publishers' files (torchvision/datasets/voc.py,
sbd.py); where none is known, none is written. Mirrors: data.pjreddie.com (VOC), the storage behind
images.cocodataset.org (COCO).
"""

from dataclasses import dataclass

from mdlib.data.coco import COUNTS


@dataclass(frozen=True)
class Source:
    """A file to fetch.

    Attributes:
        file: its name below the data set's root.
        urls: its addresses, in the order in which they are tried.
        gigabytes: about; to ask whether the disk has room.
        md5: its checksum, or None where none is known.
        folder: what an archive fills when it is unpacked, below the data set's root; None for a
            file that is used as it is.
        lines: of a list, about; None for what is no list.
    """

    file: str
    urls: tuple[str, ...]
    gigabytes: float
    md5: str | None = None
    folder: str | None = None
    lines: int | None = None


def _voc(file: str, year: int, gigabytes: float, md5: str) -> Source:
    """An archive of VOC at its publisher's and its mirror's addresses."""
    hosts = ("https://thor.robots.ox.ac.uk", "http://host.robots.ox.ac.uk")
    urls = (
        *(f"{host}/pascal/VOC/voc{year}/{file}" for host in hosts),
        f"https://data.pjreddie.com/files/{file}",
    )
    return Source(file, urls, gigabytes, md5, f"VOCdevkit/VOC{year}")


def _coco(path: str, gigabytes: float, folder: str) -> Source:
    """An archive of COCO at its publisher's addresses."""
    hosts = ("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org")
    return Source(
        path.rpartition("/")[2], tuple(f"{host}/{path}" for host in hosts), gigabytes, None, folder
    )


_SBD = "Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
_LIST = "master/datasets/coco_20k_filenames.txt"
SOURCES = {
    "voc2012": (
        _voc("VOCtrainval_11-May-2012.tar", 2012, 2.0, "6cd6e144f989b92b3379bac3b3de84fd"),
        Source(
            "benchmark.tgz",
            (f"https://www2.eecs.berkeley.edu/{_SBD}", f"http://www.eecs.berkeley.edu/{_SBD}"),
            1.4,
            "82b4d87ceb2ed10f6038a1cba92111cb",
            "benchmark_RELEASE",
        ),
    ),
    "voc2007": (
        _voc("VOCtrainval_06-Nov-2007.tar", 2007, 0.5, "c52e279531787c972589f7e41ab4ae64"),
        _voc("VOCtest_06-Nov-2007.tar", 2007, 0.5, "b6e924de25625d8de591ea690078ad9f"),
    ),
    "coco": (
        Source(
            "coco_20k_filenames.txt",
            tuple(
                f"https://raw.githubusercontent.com/{repository}/{_LIST}"
                for repository in ("valeoai/LOST", "YangtaoWANG95/TokenCut")
            ),
            0.001,
            lines=COUNTS["coco20k"],
        ),
        _coco("annotations/annotations_trainval2014.zip", 0.3, "annotations"),
        _coco("annotations/annotations_trainval2017.zip", 0.3, "annotations"),
        _coco("zips/val2017.zip", 0.8, "val2017"),
        _coco("zips/train2014.zip", 13.6, "train2014"),
    ),
}
_FLICKR = "The images come from Flickr, and their use must respect Flickr's terms of use."
_VOC_TERMS = f"{_FLICKR} Terms and how to cite: http://host.robots.ox.ac.uk/pascal/VOC/"
TERMS = {
    "voc2012": f"PASCAL VOC 2012: {_VOC_TERMS}\nSBD: labels on VOC images, published without a "
    "licence; cite Hariharan et al., ICCV 2011.",
    "voc2007": f"PASCAL VOC 2007: {_VOC_TERMS}",
    "coco": f"COCO: the annotations are under CC BY 4.0. {_FLICKR} https://cocodataset.org/#termsofuse\n"
    "COCO20k: the list of images as the authors of LOST publish it (github.com/valeoai/LOST).",
}
