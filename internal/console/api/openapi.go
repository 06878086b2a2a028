package api

import (
	_ "embed"
)

//go:embed openapi.json
var openAPI []byte

// openAPI describes the API to programs.
func (a *API) openAPI(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	return &reply{body: rawBody{"application/json", openAPI}}, nil
}
