"""The site: every document of the checkout as pages, with executed walkthroughs and the pages of published claims.

Documents stay where they lie and are read on a code host too. `documents` says which there are and in which order,
`walkthroughs` runs one and keeps what it printed (`record` is the process that does), `claim_pages` writes what was
published, `staging` lays all of it out, `python_pages` lets Sphinx read Python files, `build` calls Sphinx in strict
mode, and `check` looks at what came out: no dead link, nothing fetched from elsewhere. Only `python_pages` and `build`
import Sphinx, which is in a dependency group of its own.
"""
