# EDGEBLT_VERSION, which is written once, in pyproject.toml.
file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/../pyproject.toml version_lines REGEX "^version = \"")
list(GET version_lines 0 version_line)
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+[^\"]*" EDGEBLT_VERSION "${version_line}")
