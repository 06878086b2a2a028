package secret

// private holds by itself: the state directory is in the user's profile.
func private(string) error { return nil }

// syncDir has nothing to do: NTFS journals renames.
func syncDir(string) error { return nil }
