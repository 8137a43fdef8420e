"""What can be wrong with a host: facts are collected apart, and judged by a small pure function per check."""
