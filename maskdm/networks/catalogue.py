"""All networks, by the names that settings give them."""

from maskdm.networks.dit import DiT
from maskdm.networks.network import Network
from maskdm.networks.unet import UNet
from maskdm.networks.uvit import UViT

NETWORKS: dict[str, type[Network]] = {"uvit": UViT, "dit": DiT, "unet": UNet}


def network_class(name: str) -> type[Network]:
    """The class that a snapshot's `config.json` names.

    Raises:
        ValueError: there is none of this name.
    """
    classes = {network.__name__: network for network in NETWORKS.values()}
    if name not in classes:
        raise ValueError(f"_class_name={name}; allowed: {', '.join(classes)}")
    return classes[name]
