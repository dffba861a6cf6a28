"""Names, sizes and checksums of the files of CIFAR-10 and CIFAR-100."""

from dataclasses import dataclass

from svag.errors import UnknownName, nearest
from svag.problems.data import DataFile, DataSet

ADDRESS = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class CifarSet:
    """One of the two data sets, with the files of each form in which it can be read.

    Attributes:
        name: name of its folder and of the file of decoded images.
        archive: the file that the authors publish.
        folder: the folder in the archive.
        batches: the files in that folder, in order, the test images last.
        label_key: key of the labels in a batch file.
        pixels: SHA-256 of all images, ``(n, 32, 32, 3)``, training images first.
        labels: SHA-256 of all labels as bytes, in the same order.
        stream: the compressed images of the re-encoded form.
        label_file: the labels of the re-encoded form.
        train: number of training images.
        test: number of test images.
    """

    name: str
    archive: DataFile
    folder: str
    batches: tuple[DataFile, ...]
    label_key: bytes
    pixels: str
    labels: str
    stream: DataFile
    label_file: DataFile
    train: int = 50_000
    test: int = 10_000

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self.name.upper()

    @property
    def published(self) -> DataSet:
        """The archive as a data set of one file."""
        return DataSet(self.title, ADDRESS, ("", self.name), (self.archive,))

    @property
    def decoded_name(self) -> str:
        """Name of the file of decoded images."""
        return f"{self.name}.npy"


CIFAR_10 = CifarSet(
    name="cifar-10",
    archive=DataFile("cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a", 170_498_071),
    folder="cifar-10-batches-py",
    batches=(
        DataFile("data_batch_1", "md5:c99cafc152244af753f735de768cd75f"),
        DataFile("data_batch_2", "md5:d4bba439e000b95fd0a9bffe97cbabec"),
        DataFile("data_batch_3", "md5:54ebc095f3ab1f0389bbae665268c751"),
        DataFile("data_batch_4", "md5:634d18415352ddfa80567beed471001a"),
        DataFile("data_batch_5", "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
        DataFile("test_batch", "md5:40351d587109b95175f43aff81a1287e"),
    ),
    label_key=b"labels",
    pixels="0ac3ab5c78edb36ac68f69e287fd8f957b2d4f820b80e5fa9bd05c810fc0d95d",
    labels="3edb456524d5918aefded81f5aef7c32efab2a788211df998a4eb0c8957baa1f",
    stream=DataFile(
        "images.rans",
        "sha256:1f04cd27b5e745b4461d7816d66dc49e371d45c9f511973e355d3e0ceae661fd",
        82_260_366,
    ),
    label_file=DataFile(
        "labels.npz",
        "sha256:ce9e8e457f2fdca8b1e1c2d64c2945920afb8e4b01411d1aef8de824944f700e",
        30_835,
    ),
)
CIFAR_100 = CifarSet(
    name="cifar-100",
    archive=DataFile(
        "cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85", 169_001_437
    ),
    folder="cifar-100-python",
    batches=(
        DataFile("train", "md5:16019d7e3df5f24257cddd939b257f8d"),
        DataFile("test", "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
    label_key=b"fine_labels",
    pixels="f33db8ac706110c918c04bd7359201ed472dec17f5afc2905d52ebec1fdc3365",
    labels="75e380d51ae23ac7a9861b27461653bcfb0bc33b5ba3d2e289b76b025197c81f",
    stream=DataFile(
        "images.rans",
        "sha256:f50e376722eded0f72fb5a0996cbbb808740fb3db868a92292c369e076817ac4",
        82_967_286,
    ),
    label_file=DataFile(
        "labels.npz",
        "sha256:139f69e4729b78bd4826228a00c92794e2b7b5590bc453eb9b880b6161329ce8",
        89_499,
    ),
)
CIFAR_SETS = {known.name: known for known in (CIFAR_10, CIFAR_100)}

# The program that decodes the re-encoded form, and its table; both come with the data.
DECODER = DataFile(
    "decode_cifar.py", "sha256:00d182431448d43078eb4a80720f18a09f6b2fd965d3abef6adc26e17bbe69e4"
)
DECODER_MODEL = DataFile(
    "cifar_model.npz", "sha256:cf2ba9979a7840ddf9616c4b9318f269849a69de0b2a1d3734f1baa7e4e210c1"
)


def cifar_set(name: str) -> CifarSet:
    """Return the data set with a name.

    Raises:
        UnknownName: it is neither ``cifar-10`` nor ``cifar-100``.
    """
    if name not in CIFAR_SETS:
        raise UnknownName(
            f"no CIFAR data set is called {name!r}.{nearest(name, CIFAR_SETS)} "
            f"Known: {', '.join(CIFAR_SETS)}"
        )
    return CIFAR_SETS[name]


def files_known_by_checksum() -> dict[str, str]:
    """Return the name of each published file by its checksum, to say which file was mixed up."""
    return {
        file.checksum: f"{file.name} of {known.title}"
        for known in CIFAR_SETS.values()
        for file in (known.archive, *known.batches, known.stream, known.label_file)
    }
