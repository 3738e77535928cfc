"""How this process computes: threads, copies to a device, OpenVINO without its report of use."""
