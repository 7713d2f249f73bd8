# Writes cantilever.inp: awk -f cantilever.awk >cantilever.inp
# A prismatic beam of 20-node bricks along x, clamped at x = 0, loaded in y at its tip. README.md says why it is held as it is.

BEGIN {
    length_x = 1000; height_y = 50; width_z = 50    # mm
    nx = 20; ny = 4; nz = 2                         # elements
    young = 210000; poisson = 0.3                   # MPa
    force = 1000                                    # N

    print "** Cantilever with a force at its tip. Units: N, mm, MPa. Made by cantilever.awk, see README.md."
    print "*HEADING\nCantilever, length " length_x ", section " width_z " x " height_y ", tip force " force

    # Nodes sit on a grid twice as fine as the elements, where at most one index is odd: corners and middles of edges.
    print "*NODE, NSET=ALL"
    for (i = 0; i <= 2 * nx; i++)
        for (j = 0; j <= 2 * ny; j++)
            for (k = 0; k <= 2 * nz; k++)
                if (i % 2 + j % 2 + k % 2 <= 1) {
                    node[i, j, k] = ++nodes
                    print nodes ", " length_x * i / 2 / nx ", " height_y * (j / 2 / ny - 0.5) ", " width_z * (k / 2 / nz - 0.5)
                }

    # Corners 1 to 8, then the middles of the edges of the lower face, of the upper face, and between the two.
    split("0 0 0  2 0 0  2 2 0  0 2 0  0 0 2  2 0 2  2 2 2  0 2 2  1 0 0  2 1 0  1 2 0  0 1 0 " \
          "1 0 2  2 1 2  1 2 2  0 1 2  0 0 1  2 0 1  2 2 1  0 2 1", offset, " ")
    print "*ELEMENT, TYPE=C3D20R, ELSET=BEAM"
    for (i = 0; i < 2 * nx; i += 2)
        for (j = 0; j < 2 * ny; j += 2)
            for (k = 0; k < 2 * nz; k += 2) {
                printf "%d", ++elements
                for (n = 0; n < 20; n++)
                    printf ",%s%d", n == 12 ? "\n" : "", node[i + offset[3 * n + 1], j + offset[3 * n + 2], k + offset[3 * n + 3]]
                print ""
            }

    print "*MATERIAL, NAME=STEEL\n*ELASTIC\n" young ", " poisson
    print "*SOLID SECTION, ELSET=BEAM, MATERIAL=STEEL"

    # The clamp: no axial displacement of the whole face, and what holds the beam in y and z lies on the neutral axes.
    print "*BOUNDARY"
    for (j = 0; j <= 2 * ny; j++)
        for (k = 0; k <= 2 * nz; k++)
            if ((0, j, k) in node) {
                print node[0, j, k] ", 1, 1"
                if (j == ny) print node[0, j, k] ", 2, 2"
                if (k == nz) print node[0, j, k] ", 3, 3"
            }

    # The force, spread evenly over the tip: a quadratic face passes on -1/12 at its corners and 1/3 at its middles.
    for (j = 1; j < 2 * ny; j += 2)
        for (k = 1; k < 2 * nz; k += 2)
            for (a = -1; a <= 1; a++)
                for (b = -1; b <= 1; b++)
                    if (a != 0 || b != 0) share[j + a, k + b] += (a * b ? -1 / 12 : 1 / 3) / (ny * nz)
    print "*STEP\n*STATIC\n*CLOAD"
    for (j = 0; j <= 2 * ny; j++)
        for (k = 0; k <= 2 * nz; k++)
            if ((j, k) in share) printf "%d, 2, %.9g\n", node[2 * nx, j, k], -force * share[j, k]

    print "*NODE FILE\nU\n*EL FILE\nS"
    print "*NODE PRINT, NSET=ALL, TOTALS=ONLY\nRF"
    print "*END STEP"
}
