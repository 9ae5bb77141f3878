# ruff: noqa: E402, F401
"""Features by pytorch-fid's and torch-fidelity's classes: STATE IMAGES OUT, run by a test in a process of its own."""

import sys

import torch

names = (
    "nms qnms deform_conv2d ps_roi_align ps_roi_pool qroi_align roi_align roi_pool _deform_conv2d_backward "
    "_ps_roi_align_backward _ps_roi_pool_backward _roi_align_backward _roi_pool_backward"
)
try:
    import torchvision
except Exception:  # its compiled operators do not fit this torch; Inception needs none of them
    for name in [n for n in sys.modules if n.startswith("torchvision")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in names.split():
        library.define(name + "(Tensor x) -> Tensor")
from pytorch_fid import inception as pytorch_fid
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

state, images = torch.load(sys.argv[1], weights_only=True), torch.load(sys.argv[2], weights_only=True)
images = images.permute(0, 3, 1, 2)
fidelity = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=sys.argv[1])
spatial = []
fidelity.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: spatial.append(output))
pool, logits = fidelity(images)
# torch-fidelity's own resize, then pytorch-fid's network, which would resize another way.
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

resized = resize(images.float(), (299, 299), align_corners=False)
pytorch_fid.load_state_dict_from_url = lambda *a, **k: state
other = pytorch_fid.InceptionV3(resize_input=False, normalize_input=False).eval()
with torch.no_grad():
    second = other((resized - 128) / 128)[0].flatten(1)
torch.save({"pool": pool, "logits": logits, "spatial": spatial[0], "pytorch_fid": second}, sys.argv[3])
