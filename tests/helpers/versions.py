"""What old versions of torch and Lightning leave out; docs/guarantees.md says so."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_autoassist.capture.autograd_graph import knows_shapes

resumes_exactly = pytest.mark.skipif(
    pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume"
)
finds_losses_by_hand = pytest.mark.skipif(
    not knows_shapes(torch.zeros(1, requires_grad=True).sum()),
    reason="torch 2.4 tells no shapes, so that they are not found",
)
