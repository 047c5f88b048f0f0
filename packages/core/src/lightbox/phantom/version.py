"""Version of the generator: it enters every job key, so a change of a single pixel must change it."""

from lightbox.files import digest, file_sha256
from lightbox.paths import shared_data

VERSION = "chest-2"  # of questions and rationales
IMAGES_VERSION = "chest-1"  # of images, findings and reports, which are as they were
DATA_FILES = ("balance.json", "splits.json")  # committed tables that draws depend on as much as on code


def generator_digest() -> str:
    """What identifies the images, facts and texts of the phantom: its version and the data files that it draws by."""
    return digest([VERSION, *(file_sha256(shared_data() / "phantom" / name) for name in DATA_FILES)])
