"""The one list of dependencies: its bounds hold for launcher, workers and image alike.

Every bound was resolved together with the others; .ci/run tests the newest and the oldest set. Why
each is here:

apache-beam[gcp]      the pipelines, with the Dataflow runner and its file systems (Apache-2.0)
tensorstore           volumes and the embedding store; 0.1.81 is the first to read byte ranges;
                      pre-1.0, so capped below 0.2 (Apache-2.0)
tensorflow, keras     the network; one distribution, `tensorflow`, which also serves GPUs
                      (Apache-2.0)
numpy, pyarrow        arrays; tables and Parquet, and the raw snappy codec (BSD-3, Apache-2.0)
google-cloud-storage  whole objects on gs:// (Apache-2.0)
h5py                  reads HDF5 (BSD-3)
pillow                decodes PNG and JPEG sections, and TIFF pages that tifffile cannot (MIT-CMU)
tifffile              reads TIFF, tiled, stacked and BigTIFF (BSD-3)
mrcfile, nibabel      read the headers of MRC and NIfTI (BSD-3, MIT)
pyyaml                --config files (MIT)
tqdm                  the progress bar (MPL-2.0 and MIT)
matplotlib            the demo's picture (PSF-like)

For the tests alone, besides their tools: the clients whose volumes are read and who read ours:
cloud-volume (BSD-3, of whose dependencies some are LGPL), zarr (MIT), ome-zarr-models (MIT),
neuroglancer (Apache-2.0); pyspng-seunglab (BSD), which cloud-volume's PNG chunks need.
"""

import pathlib

from setuptools import find_packages, setup

PACKAGES = ["volumes", "segclr", "transforms", "pipelines", "launch"]

setup(
    name="segclr-beam",
    version="0.1.0",
    description="SegCLR embeddings of brain volumes, on Apache Beam and TensorStore",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=[name + suffix for name in PACKAGES for suffix in ("", ".*")]),
    install_requires=[
        "apache-beam[gcp]>=2.74,<2.78",
        "tensorstore>=0.1.81,<0.2",
        "tensorflow>=2.20,<2.22",
        "keras>=3.14,<3.16",
        "numpy>=2.1,<2.5",
        "pyarrow>=18,<26",
        "google-cloud-storage>=2.18,<4",
        "h5py>=3.11,<3.15",
        "pillow>=11,<13",
        "tifffile>=2025.1,<2027",
        "mrcfile>=1.5,<2",
        "nibabel>=5.3,<6",
        "pyyaml>=6,<7",
        "tqdm>=4.66,<5",
        "matplotlib>=3.11,<4",
    ],
    extras_require={
        "dev": [
            "cloud-volume>=12.10,<13",
            "hypothesis>=6.160,<7",
            "mypy>=2.1,<3",
            "neuroglancer>=2.40,<3",
            "ome-zarr-models>=1.7,<2",
            "pyspng-seunglab>=1.1,<2",
            "pytest>=8.3,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "scikit-learn>=1.5,<2",
            "types-PyYAML>=6,<7",
            "zarr>=3.1,<4",
        ],
    },
    entry_points={"console_scripts": ["segclr-beam=launch.cli:main"]},
)
