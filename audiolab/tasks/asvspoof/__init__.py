"""Is this speech bona fide or spoofed?"""
