"""What svag costs, as ratios against peers measured in the same process, interleaved."""
