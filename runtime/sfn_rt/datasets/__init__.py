"""Finds the videos, labels and masks in a data folder as people have them.

    training/frames/01/000.jpg ...  testing/frames/01/000.jpg     the benchmarks' common layout
    training/videos/01.avi ...      testing/videos/01.avi         or videos right in these folders
    Train/Train001/001.tif ...      Test/Test001/001.tif          UCSD, as its owners ship it
    training_videos/01.avi ...      testing_videos/01.avi         Avenue, as its owners ship it
    train/ or normal/ ...           test/                         folders of videos
    day1.mp4 day2.mp4 ...                                         a plain folder: all of it normal

A video is a file or a folder of frame images. Labels belong to test videos, 1 = abnormal, and
lie beside the folders, in the test folder or in ground_truth_demo. labels.py lists the kinds of
labels, masks.py those of pixel masks, known.py the published data sets that are recognised.
"""

from sfn_rt.datasets.dataset import Dataset as Dataset
from sfn_rt.datasets.dataset import open_dataset as open_dataset
from sfn_rt.datasets.video import PixelMasks as PixelMasks
from sfn_rt.datasets.video import Video as Video
from sfn_rt.datasets.video import check_length as check_length
from sfn_rt.datasets.video import fingerprint as fingerprint
