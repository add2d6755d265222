package result

import (
	"fmt"
	"os"
)

// ReadFiles reads runs from files of JSON lines, one after the other. Its error
// names the file.
func ReadFiles(paths ...string) ([]Record, error) {
	var all []Record
	for _, path := range paths {
		rs, err := readFile(path)
		if err != nil {
			return nil, err
		}
		all = append(all, rs...)
	}
	return all, nil
}

func readFile(path string) ([]Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err) // it names the file
	}
	defer f.Close()
	rs, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return rs, nil
}
