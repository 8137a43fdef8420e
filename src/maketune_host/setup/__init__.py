"""host-setup: what the machine lacks, installed by its distribution's documented steps."""
