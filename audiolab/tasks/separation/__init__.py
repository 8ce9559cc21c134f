"""Speech separation: one waveform for each talker of a mixture."""
