"""Reading, writing, resampling and levelling waveforms."""
