//go:build tools

// Package host pins the modules that Pulumi's Python language host is built from.
package host

import _ "github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python"
