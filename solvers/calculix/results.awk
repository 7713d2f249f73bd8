# Reads a CalculiX result file (.frd, ASCII) and prints the largest displacement and the largest von Mises stress
# over all nodes and all stored increments, as outputs.json.
#
# A result block: ` -4  NAME …`, one ` -5  COMPONENT …` each, one ` -1` line per node (number in columns 4 to 13,
# then values 12 wide without a separator), ` -3`.

/^ -4 / { block = $2 }
/^ -3/ { block = "" }

/^ -1/ && (block == "DISP" || block == "STRESS") {
    values = substr($0, 14)
    # Negative values touch their left neighbour. Each has one digit before its point, so a number starts there.
    gsub(/-?[0-9]\./, " &", values)
    n = split(values, v, " ")
    if (values ~ /[nN][aA][nN]|[iI][nN][fF]/) bad(block " has values that are no numbers: the solution diverged")
    if (n < (block == "DISP" ? 3 : 6)) bad("unexpected line in block " block ": " $0)
    if (block == "DISP")
        keep(sqrt(v[1] ^ 2 + v[2] ^ 2 + v[3] ^ 2))
    else
        keep(sqrt(((v[1] - v[2]) ^ 2 + (v[2] - v[3]) ^ 2 + (v[3] - v[1]) ^ 2) / 2 + 3 * (v[4] ^ 2 + v[5] ^ 2 + v[6] ^ 2)))
}

function keep(value) {
    if (!(block in largest) || value > largest[block]) largest[block] = value
}

function bad(message) {
    print "error: " message >"/dev/stderr"
    failed = 1
    exit 1
}

END {
    if (failed) exit 1
    if (!("DISP" in largest)) bad("model.frd has no displacements: ask for them with *NODE FILE and U")
    if (!("STRESS" in largest)) bad("model.frd has no stresses: ask for them with *EL FILE and S")
    printf "{\"max_displacement\": %.6g, \"max_von_mises\": %.6g}\n", largest["DISP"], largest["STRESS"]
}
