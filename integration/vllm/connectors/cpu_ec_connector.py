"""The file connector of vLLM 0.11 to 0.13 for engines on CPUs.

Its own loads embeddings with .cuda(), which fails without a GPU; later releases load to the engine's device.
An engine finds this module by PYTHONPATH and "ec_connector_module_path":"cpu_ec_connector".
"""

import torch

try:
    from vllm.distributed.ec_transfer.ec_connector import shared_storage_connector as connector

    Base = connector.ECSharedStorageConnector
except ImportError:  # renamed in 0.13
    from vllm.distributed.ec_transfer.ec_connector import example_connector as connector

    Base = connector.ECExampleConnector


class CPUConnector(Base):
    def start_load_caches(self, encoder_cache, **kwargs):
        cuda = torch.Tensor.cuda
        torch.Tensor.cuda = lambda tensor: tensor
        try:
            super().start_load_caches(encoder_cache, **kwargs)
        finally:
            torch.Tensor.cuda = cuda
