"""Control: logged episodes, and in time what is learned from them."""
