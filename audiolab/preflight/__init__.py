"""What can be known before a run: packages, machine, memory, disk, lists, audio, pretrained weights."""
