"""The sets of images with masks that can be read, by name.

They stand beside `catalog.DATASETS` and not in it: that file's code is in the key of every job on real data. Two names
are in both: from `catalog` come their boxes, which published runs were trained on, from here boxes and masks.
"""

from lightbox.readers import decathlon, drosophila_vnc, mask_folders, mecovqa, region_masks, sa_med2d
from lightbox.readers.catalog import Reader

MASK_SETS: dict[str, Reader] = {
    "mecovqa": Reader("MeCoVQA", "not stated", mecovqa.SPLITS, mecovqa.read_cases),
    "sa_med2d_20m": Reader("SA-Med2D-20M", "CC-BY-NC-SA-4.0", (), sa_med2d.read_cases),
    "sam_med2d_demo": Reader("SAM-Med2D, demonstration", "Apache-2.0", ("train", "test"), sa_med2d.read_demo),
    "msd_hippocampus": Reader("Decathlon, hippocampus", "CC-BY-SA-4.0", (), decathlon.read_cases),
    "covid_cxr_masks": Reader("COVID-19 CXR segmentations", "CC-BY-NC-SA", (), region_masks.read_covid),
    "dsb2018_nuclei": Reader("Data Science Bowl 2018", "CC0-1.0", (), region_masks.read_nuclei),
    "drosophila_vnc_em": Reader("Fly nerve cord, ssTEM", "CC-BY-NC-SA-3.0", (), drosophila_vnc.read_cases),
    # a format, whoever's data
    "decathlon": Reader("Decathlon task", "CC-BY-SA-4.0", (), decathlon.read_cases),
    "mask_folders": Reader("Folders of images and masks", "not stated", mask_folders.SPLITS, mask_folders.read_cases),
}
