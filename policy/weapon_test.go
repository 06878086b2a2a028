package policy_test

import ()
