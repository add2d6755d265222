package hosts

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// The comments around the block. Earlier versions' blocks are recognised by
// the prefix.
const (
	beginPrefix = "# BEGIN shoal:"
	beginLine   = beginPrefix + " made by 'shoal configure', taken out by 'shoal unconfigure'. Do not edit in here."
	endLine     = "# END shoal"
)

// block is what is put into a file.
type block struct {
	// mirror is the address, a URL.
	mirror string
	// ca and client are what containerd would have found in the directory if
	// there were no hosts.toml.
	ca     []string
	client [][]string
}

// render returns the block's lines, each with its end.
func (b block) render(newline string) ([]byte, error) {
	// Through the library, for names of files have any characters in them.
	top, err := toml.Marshal(struct {
		CA     []string   `toml:"ca,omitempty"`
		Client [][]string `toml:"client,omitempty"`
	}{b.ca, b.client})
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("%s\n%s[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n%s\n", beginLine, top, b.mirror, endLine)
	return []byte(strings.ReplaceAll(text, "\n", newline)), nil
}

// add puts the block into a text that may already have one. It fails, with the
// line, if the text cannot be changed safely.
func add(text []byte, b block) ([]byte, error) {
	base, err := remove(text)
	if err != nil {
		return nil, err
	}
	doc, err := parse(base)
	if err != nil {
		return nil, err
	}
	if i := position(doc.urls(), b.mirror); i >= 0 {
		if i == 0 && doc.serves(doc.hosts[0].url) {
			return base, nil // somebody wrote by hand what the block says
		}
		return nil, fmt.Errorf("line %d: [host.%q] is there already, but not as the first host with the capabilities pull and resolve: delete it",
			doc.hosts[i].line, doc.hosts[i].url)
	}
	newline := lineEnd(base)
	lines, err := b.render(newline)
	if err != nil {
		return nil, fmt.Errorf("write TOML: %w", err)
	}
	if doc.insert == len(base) && len(base) > 0 && base[len(base)-1] != '\n' {
		// The missing end of the last line moves to the end of the block,
		// where remove finds it missing.
		lines = append([]byte(newline), bytes.TrimSuffix(lines, []byte(newline))...)
	}
	after := slices.Concat(base[:doc.insert], lines, base[doc.insert:])
	if err := verify(doc, base, after, b); err != nil {
		return nil, fmt.Errorf("refused to write what would not be as intended: %w", err)
	}
	return after, nil
}

// remove cuts the block out of a text that may have one.
func remove(text []byte) ([]byte, error) {
	if !bytes.Contains(text, []byte(beginPrefix)) && !bytes.Contains(text, []byte(endLine)) {
		return text, nil // also if it does not parse: it is not ours to judge
	}
	doc, err := parse(text)
	if err != nil {
		return nil, err
	}
	if !doc.has {
		return text, nil
	}
	before, rest := text[:doc.begin], text[doc.end:]
	if len(rest) == 0 && !bytes.HasSuffix(text, []byte("\n")) {
		before = bytes.TrimSuffix(before, []byte(lineEnd(text)))
	}
	return slices.Concat(before, rest), nil
}

// verify checks that after is what add promises.
func verify(old document, before, after []byte, b block) error {
	back, err := remove(after)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, before) {
		return errors.New("taking it out again does not restore the file")
	}
	doc, err := parse(after)
	if err != nil {
		return err
	}
	if !slices.Equal(doc.urls(), append([]string{b.mirror}, old.urls()...)) {
		return errors.New("the hosts are not in their order")
	}
	if !doc.serves(b.mirror) {
		return errors.New("the new host has not its capabilities")
	}
	delete(doc.table("host"), b.mirror)
	if len(doc.table("host")) == 0 && len(old.table("host")) == 0 {
		delete(doc.values, "host")
		delete(old.values, "host")
	}
	if b.ca != nil {
		delete(doc.values, "ca")
	}
	if b.client != nil {
		delete(doc.values, "client")
	}
	if !reflect.DeepEqual(doc.values, old.values) {
		return errors.New("something else in the file would get another meaning")
	}
	return nil
}

// lineEnd is how the first line of the text ends.
func lineEnd(text []byte) string {
	if i := bytes.IndexByte(text, '\n'); i > 0 && text[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// host is a [host."url"] table.
type host struct {
	url  string
	line int
}

// document is what is known of a text.
type document struct {
	values map[string]any
	// hosts in the order in which containerd 2 asks them, ours among them.
	hosts []host
	// insert is the offset where a table goes that is to be the first one.
	insert int
	// has tells whether there is a block. It is from begin, inclusive, to end,
	// exclusive, in whole lines.
	has        bool
	begin, end int
	// carries tells whether the block has keys of the top level.
	carries bool
}

// table returns a table of the top level, nil if there is none.
func (d document) table(name string) map[string]any {
	t, _ := d.values[name].(map[string]any)
	return t
}

// urls are those of the hosts.
func (d document) urls() (us []string) {
	for _, h := range d.hosts {
		us = append(us, h.url)
	}
	return us
}

// position is where a host's URL, which has no slash at its end, stands among
// others, -1 if it does not.
func position(urls []string, url string) int {
	return slices.IndexFunc(urls, func(u string) bool { return strings.TrimRight(u, "/") == url })
}

// serves tells whether containerd pulls and resolves through the host.
func (d document) serves(url string) bool {
	h, _ := d.table("host")[url].(map[string]any)
	capabilities, _ := h["capabilities"].([]any)
	has := func(c string) bool {
		return slices.ContainsFunc(capabilities, func(v any) bool { s, _ := v.(string); return strings.EqualFold(s, c) })
	}
	return len(capabilities) == 0 || has("pull") && has("resolve") // none given are all of them
}

// parse reads a hosts.toml.
func parse(text []byte) (document, error) {
	values := map[string]any{}
	if err := toml.Unmarshal(text, &values); err != nil {
		return document{}, fmt.Errorf("line %d: %w", lineOf(text, err), err)
	}
	s := scanner{text: text, document: document{values: values, insert: -1}}
	s.parser.KeepComments = true
	s.parser.Reset(text)
	for s.parser.NextExpression() {
		if err := s.expression(s.parser.Expression()); err != nil {
			return document{}, fmt.Errorf("line %d: %w", bytes.Count(text[:s.at], []byte("\n"))+1, err)
		}
	}
	if err := s.parser.Error(); err != nil {
		return document{}, err
	}
	if s.inside {
		return document{}, fmt.Errorf("line %d: no %q follows: restore it, or delete what is of the block", bytes.Count(text[:s.begin], []byte("\n"))+1, endLine)
	}
	if s.insert < 0 {
		s.insert = len(text)
	}
	return s.document, nil
}

// lineOf tells which line of a text an error of the library's is about.
func lineOf(text []byte, err error) int {
	var at *toml.DecodeError
	if errors.As(err, &at) {
		line, _ := at.Position()
		return line
	}
	// What is defined twice is not said to be so where: it is in the first
	// expression with which the text fails.
	var p unstable.Parser
	var begins []int
	for p.Reset(text); p.NextExpression(); {
		_, offset := keyOf(p.Expression())
		begins = append(begins, int(offset))
	}
	i := sort.Search(len(begins)-1, func(i int) bool {
		// Up to the line of the next one.
		return toml.Unmarshal(text[:bytes.LastIndexByte(text[:begins[i+1]], '\n')+1], &map[string]any{}) != nil
	})
	return bytes.Count(text[:begins[i]], []byte("\n")) + 1
}

// scanner walks over the lines of a text.
type scanner struct {
	document
	text   []byte
	parser unstable.Parser

	at     int      // the line of the current expression
	table  []string // the current table
	inside bool     // between the two comments
	tables int      // seen in the block
	open   bool     // the block's table has not been followed by another
	// The comments directly above the next line, as offsets of lines. They
	// belong to what follows them.
	noteBegin, noteEnd int
}

// line returns the offset of the line that an offset is in, and of the next.
func (s *scanner) line(offset uint32) (begin, end int) {
	begin = bytes.LastIndexByte(s.text[:offset], '\n') + 1
	if i := bytes.IndexByte(s.text[offset:], '\n'); i >= 0 {
		return begin, int(offset) + i + 1
	}
	return begin, len(s.text)
}

func (s *scanner) expression(e *unstable.Node) error {
	if e.Kind == unstable.Comment {
		return s.comment(e)
	}
	key, offset := keyOf(e)
	s.at, _ = s.line(offset)
	if e.Kind == unstable.KeyValue {
		return s.keyValue(key)
	}
	return s.header(e.Kind, key)
}

// keyOf returns the parts of an expression's key, and where it begins.
func keyOf(e *unstable.Node) (key []string, offset uint32) {
	for it := e.Key(); it.Next(); {
		if key == nil {
			offset = it.Node().Raw.Offset
		}
		key = append(key, string(it.Node().Data))
	}
	return key, offset
}

func (s *scanner) comment(e *unstable.Node) error {
	begin, end := s.line(e.Raw.Offset)
	s.at = begin
	if s.noteEnd != begin {
		s.noteBegin = begin
	}
	s.noteEnd = end
	switch text := strings.TrimRight(string(e.Data), " \t\r"); {
	case strings.HasPrefix(text, beginPrefix):
		if s.has || s.inside {
			return errors.New("a second block of Shoal's: delete one of them")
		}
		s.inside, s.begin = true, begin
	case text == endLine:
		if !s.inside {
			return fmt.Errorf("no %q before it: restore it, or delete what is of the block", beginPrefix)
		}
		s.inside, s.has, s.end = false, true, end
		s.open = s.tables > 0
	}
	return nil
}

func (s *scanner) keyValue(key []string) error {
	switch {
	case s.inside && s.tables == 0 && len(s.table) == 0:
		s.carries = true
		if key[0] != "ca" && key[0] != "client" {
			return fmt.Errorf("%q stands in Shoal's block: move it above", key[0])
		}
	case s.open:
		return fmt.Errorf("%q stands below Shoal's block and so belongs to its host: move it above the block", key[0])
	}
	if top := append(slices.Clone(s.table), key...); top[0] == "host" && len(s.table) < 2 {
		return errors.New(`a host that is not a table of its own: write it as [host."https://..."], containerd 2 ignores it otherwise`)
	}
	return nil
}

func (s *scanner) header(kind unstable.Kind, key []string) error {
	s.table, s.open = key, false
	if s.inside {
		if s.tables++; s.tables > 1 {
			return errors.New("a second table in Shoal's block: move it below")
		}
	}
	if s.insert < 0 {
		s.insert = s.at
		if s.noteEnd == s.at && s.noteBegin > 0 {
			s.insert = s.noteBegin
		}
	}
	if key[0] != "host" {
		return nil
	}
	if kind == unstable.ArrayTable {
		return errors.New("host is an array of tables: containerd reads tables only")
	}
	// As containerd does it: tables below a host are not further hosts.
	if len(key) > 1 && (len(s.hosts) == 0 || s.hosts[len(s.hosts)-1].url != key[1]) {
		s.hosts = append(s.hosts, host{key[1], bytes.Count(s.text[:s.at], []byte("\n")) + 1})
	}
	return nil
}
