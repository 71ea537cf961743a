"""The gateway: submit, watch and repair through HTTP. It needs the extra `gateway`."""
