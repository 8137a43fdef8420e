"""What every room uses: settings, the run directory, progress, the device."""
