"""One-line faults planted into a copy of the product: each breaks a promise, and the tests that hold the promise must fail."""
